"""The TLS configurations that applications make.

OpenSSL is imported when the first one is made, so ``import sp`` stays quick.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, final

import attrs

from sp.tls.settings import ClientSettings, ServerSettings

if TYPE_CHECKING:
    from sp.tls.reload import ContextSource


class _Reloadable:
    """What both sides have apart from their fields."""

    __slots__ = ()

    contexts: ContextSource

    def reload(self) -> None:
        """Read all files again.

        New connections use what the files hold now.  Existing connections continue, but sessions
        from before cannot be resumed.  Raises TLSConfigError if something is wrong with the files;
        the old content then stays in use.
        """
        self.contexts.reload()


def _context_source(config: ServerSettings | ClientSettings) -> ContextSource:
    from sp.tls.reload import ContextSource  # noqa: PLC0415  # imports OpenSSL, so only on first use

    return ContextSource(config)


@final
@attrs.frozen(kw_only=True, eq=False)
class TLSServerConfig(ServerSettings, _Reloadable):
    """How a listener uses TLS.  ``certificate`` is required.

    By default any client may connect.  With ``client_ca``, a client must show a certificate that is
    signed by one of these authorities.

    A configuration can be shared by any number of listeners, which then also resume each other's
    sessions.  All files are read and everything is checked when it is made: TLSConfigError names
    the file and the reason; a value of the wrong type or out of range is a TypeError or ValueError.
    """

    contexts: ContextSource = attrs.field(init=False, repr=False)
    """For the library itself."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        # This cannot be a default, since attrs sets defaults before it runs the validators.
        object.__setattr__(self, "contexts", _context_source(self))


@final
@attrs.frozen(kw_only=True, eq=False)
class TLSClientConfig(ClientSettings, _Reloadable):
    """How a dialer uses TLS.

    By default a client trusts the system CAs and checks the URL's host name.  ``ca`` replaces the
    system CAs, and ``server_name`` replaces the host name.

    A configuration can be shared by any number of dialers.  All files are read and everything is
    checked when it is made: TLSConfigError names the file and the reason; a value of the wrong type
    or out of range is a TypeError or ValueError.
    """

    contexts: ContextSource = attrs.field(init=False, repr=False)
    """For the library itself."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        object.__setattr__(self, "contexts", _context_source(self))


@cache
def default_client_config() -> TLSClientConfig:
    """Return the configuration for dialers that were given none."""
    return TLSClientConfig()
