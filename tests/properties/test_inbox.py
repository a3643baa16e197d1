"""Inbox against a list that is counted anew each time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.protocols.inbox import Inbox
from sp.testing import FakePipe

numbers = st.integers(0, 2)
sizes = st.integers(0, 12)


class InboxMachine(RuleBasedStateMachine):
    """Offers, takes, purges and second thoughts; the model knows each time what must come of it."""

    @initialize(limit=st.integers(1, 5), size=st.integers(1, 20), policy=st.sampled_from([None, "oldest", "newest"]))
    def begin(self, limit: int, size: int, policy: DropPolicy | None) -> None:
        self.limit, self.size, self.policy = limit, size, policy
        self.inbox = Inbox(SocketOptions(inbox_limit=limit, inbox_bytes=size), policy)
        self.pipes = [FakePipe() for _ in range(3)]
        self.queue: list[bytes] = []
        self.in_hand: Message | None = None  # taken last, and perhaps put back
        # Messages that were put back into a full inbox, and are there still at most.
        self.excess = 0
        self.held: dict[FakePipe, None] = {}
        self.losing = False
        self.dropped = 0
        self.resumed = dict.fromkeys(self.pipes, 0)

    def fits(self, size: int) -> bool:
        return not self.queue or (len(self.queue) < self.limit and sum(map(len, self.queue)) + size <= self.size)

    def relax(self, *, everybody: bool = False) -> None:
        """As many are resumed as there are places: each offers again, or is forgotten, and then the
        next has its turn.
        """
        if len(self.queue) <= self.limit // 2 and sum(map(len, self.queue)) <= self.size // 2:
            self.losing = False
            for pipe in list(self.held)[: None if everybody else self.limit - len(self.queue)]:
                self.resumed[pipe] += 1
                del self.held[pipe]

    @rule(number=numbers, size=sizes)
    def offer(self, number: int, size: int) -> None:
        body, pipe = bytes(size), self.pipes[number]
        taken = self.fits(size) or self.losing
        assert self.inbox.has_room(Message(body)) is taken
        assert self.inbox.offer(pipe, Message(body)) is taken
        if not taken:
            self.held.setdefault(pipe)
        elif self.fits(size):
            self.queue.append(body)
        elif self.policy == "newest":
            self.dropped += 1
        else:
            while not self.fits(size):
                del self.queue[0]
                self.dropped += 1
            self.queue.append(body)

    @rule(number=numbers, batch=st.lists(sizes, max_size=7))
    def offer_many(self, number: int, batch: list[int]) -> None:
        pipe = self.pipes[number]
        taken = self.inbox.offer_many(pipe, [Message(bytes(size)) for size in batch])
        dropped = 0
        for place, size in enumerate(batch):
            if not self.fits(size) and not self.losing:
                assert taken == place
                self.held.setdefault(pipe)
                break
            if self.fits(size):
                self.queue.append(bytes(size))
            elif self.policy == "newest":
                dropped += 1
            else:
                while not self.fits(size):
                    del self.queue[0]
                    dropped += 1
                self.queue.append(bytes(size))
        else:
            assert taken == len(batch)
        self.dropped += dropped

    @rule()
    def take(self) -> None:
        message = self.inbox.take()
        assert (message and message.body) == (self.queue.pop(0) if self.queue else None)
        if message:
            self.relax()
        self.in_hand = message
        self.excess = max(0, self.excess - 1)

    @rule(limit=st.one_of(st.none(), numbers))
    def take_many(self, limit: int | None) -> None:
        bodies = self.inbox.take_bodies(limit)
        count = len(self.queue) if limit is None else limit
        assert bodies == self.queue[:count]
        del self.queue[:count]
        self.relax()
        self.in_hand = None
        self.excess = max(0, self.excess - len(bodies))

    @precondition(lambda self: self.in_hand)
    @rule()
    def put_back(self) -> None:
        assert self.in_hand is not None
        self.excess += not self.fits(len(self.in_hand.body))
        self.inbox.put_back(self.in_hand)
        self.queue.insert(0, self.in_hand.body)
        self.in_hand = None

    @rule()
    def release(self) -> None:
        self.inbox.release()
        for pipe in self.held:
            self.resumed[pipe] += 1
        self.held.clear()

    @rule(remainder=numbers)
    def purge(self, remainder: int) -> None:
        self.inbox.purge(lambda message: len(message.body) % 3 != remainder)
        self.queue = [body for body in self.queue if len(body) % 3 != remainder]
        self.relax(everybody=True)

    @rule()
    def start_dropping(self) -> None:
        if self.policy is not None:
            self.inbox.start_dropping()
            self.losing = True

    @rule(number=numbers)
    def hold(self, number: int) -> None:
        if self.queue:
            self.inbox.hold(self.pipes[number])
            self.held.setdefault(self.pipes[number])

    @rule(number=numbers)
    def forget(self, number: int) -> None:
        self.inbox.forget(self.pipes[number])
        self.held.pop(self.pipes[number], None)
        self.relax()

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        assert len(self.inbox) == len(self.queue) <= self.limit + self.excess
        assert sum(map(len, self.queue)) <= self.size or len(self.queue) == 1 or self.excess
        assert self.inbox.dropped == self.dropped
        assert {pipe: pipe.resumed for pipe in self.pipes} == self.resumed

    def teardown(self) -> None:
        while self.queue:
            self.take()
        for _ in self.pipes:  # who was resumed goes away instead of offering again
            self.inbox.forget(FakePipe())
            self.relax()
        assert not self.held, "nobody is held back by an empty inbox"
        for size in (self.size - 1, 1, 1):  # not a byte is left over in the accounts
            self.offer(0, size)


TestInbox = InboxMachine.TestCase
