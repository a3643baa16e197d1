# wss outside, ws inside. hitch ends TLS and tells Varnish the client's address; Varnish passes the upgrade on. Start it with
# varnishd -a 127.0.0.1:6081,PROXY -f /etc/sp/varnishd-wss.vcl -p pipe_timeout=60
# pipe_timeout is how many seconds both sides may be silent. Pings and their answers count; they come every 20 s.
vcl 4.1;

import proxy;

backend service {
    .host = "127.0.0.1";
    .port = "8080";
}

sub vcl_recv {
    if (req.http.Upgrade ~ "(?i)^websocket$") {
        return (pipe);
    }
}

sub vcl_pipe {
    # Varnish removes these two, as every proxy does, so they are set again.
    set bereq.http.Upgrade = req.http.Upgrade;
    set bereq.http.Connection = "Upgrade";

    # These lines overwrite what the client sent under the same names. They have to be here: after vcl_recv, Varnish
    # removes every header that the client's Connection header names.
    set bereq.http.X-Forwarded-For = client.ip;
    set bereq.http.X-Forwarded-Proto = "http";
    if (proxy.is_ssl()) {
        set bereq.http.X-Forwarded-Proto = "https";
    }
    unset bereq.http.Forwarded;
}
