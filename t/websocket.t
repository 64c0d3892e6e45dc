#!/usr/bin/perl
# Upgrade: WebSocket in the clear and through interception.  RFC 6455;
# RFC 9110 section 7.8.
use v5.36;
use Digest::SHA qw(sha1_base64);
use Test::More;
use Weir;

my $key    = 'dGhlIHNhbXBsZSBub25jZQ==';
my $accept = sha1_base64("${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11") . '=';
my @ask    = ('Connection: keep-alive, Upgrade', 'Upgrade: websocket',
    "Sec-WebSocket-Key: $key", 'Sec-WebSocket-Version: 13');
my $switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
    . "Upgrade: websocket\r\nSec-WebSocket-Accept: $accept\r\n\r\n";

my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.idle_s=3',
    'tunnel.stream_idle_s=600' ]);

sub upgrade($via)
{
    my $l = listener();
    my $c = $via->client;
    $c->put(request('GET', "http://${\ $l->addr}/chat", \@ask));
    my $s = $l->accept;
    return ($c, $s, $s->get_request);
}

{
    my ($c, $s, $seen) = upgrade($w);
    is field($seen, 'upgrade'), 'websocket', 'Upgrade goes up';
    like field($seen, 'connection'), qr/\bupgrade\b/i, 'named by Connection';
    unlike field($seen, 'connection'), qr/keep-alive/i, 'which is made anew';
    is field($seen, 'sec-websocket-key'), $key, 'with its key';
    ok $c->silent(0.2), 'no 101 before the origin\'s';
    $s->put($switch);
    my $got = $c->get_answer;
    is $got->{status}, 101, 'then 101';
    is field($got, 'upgrade'), 'websocket', 'with Upgrade';
    like field($got, 'connection'), qr/\bupgrade\b/i, 'and Connection';
    is field($got, 'sec-websocket-accept'), $accept, 'and its key';
    is field($got, $_), undef, "without $_"
        for qw(Content-Length Transfer-Encoding);
    $c->put("\x81\x85aaaa\0\1\2\3\4");
    is $s->get(11), "\x81\x85aaaa\0\1\2\3\4", 'frames go up';
    $s->put("\x81\x05hello");
    is $c->get(7), "\x81\x05hello", 'and down';
    $c->shut;
    is $s->get_eof, '', 'an end goes up';
    $s->close;
    is $c->get_eof, '', 'and down';
}
{ # a pause longer than idle_s: upgraded connections have stream_idle_s
    my ($c, $s) = upgrade($w);
    $s->put($switch);
    $c->get_answer;
    my $idle = $w->client;
    is $idle->get_eof, '', 'idle_s passes (and ends an idle client)';
    $s->put("\x89\0");
    is $c->get(2), "\x89\0", 'a WebSocket survives the pause';
}
{ # half closed and quiet it has half_closed_s, whatever stream_idle_s is
    my $short = Weir->start(set => [ 'intercept.enable=no',
        'tunnel.stream_idle_s=600', 'tunnel.half_closed_s=2' ]);
    for my $first (0, 1) {
        my @both = (upgrade($short))[0, 1];
        $both[1]->put($switch);
        $both[0]->get_answer;
        $both[$first]->shut;
        is $both[!$first]->get_eof, '', 'one side ends';
        is $both[$first]->get_eof, '', 'and when the other is silent, all does';
    }
    $short->wait_log(qr/ tunnel .*why=idle/);
    $short->stop;
}
{ # frames glued to the heads, on both sides
    my ($c, $s) = upgrade($w);
    $s->put("${switch}\x81\x05first");
    is $c->get_answer->{status}, 101, 'the origin switches';
    is $c->get(7), "\x81\x05first", 'with a frame glued to it';
    my $l = listener();
    $c = $w->client;
    $c->put(request('GET', "http://${\ $l->addr}/chat", \@ask) . "\x81\x01x");
    $s = $l->accept;
    $s->get_request;
    $s->put($switch);
    is $s->get(3), "\x81\x01x", 'a frame glued to the request';
}
{ # an origin that does not switch
    my $l = listener();
    my $c = $w->client;
    for my $status ('400 Bad Request', '200 OK', '426 Upgrade Required') {
        $c->put(request('GET', "http://${\ $l->addr}/chat", \@ask));
        my $s = $l->accept;
        $s->get_request;
        $s->put("HTTP/1.1 $status\r\nContent-Length: 2\r\n"
                . "Connection: close\r\n\r\nno");
        $s->close;
        my $got = $c->get_answer;
        is "$got->{status} $got->{body}", substr($status, 0, 3) . ' no',
            "$status instead of 101 passes";
    }
}
{ # a switch to something that was not asked for
    my ($c, $s) = upgrade($w);
    $s->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            . "Upgrade: cow\r\n\r\n");
    is $c->get_answer->{status}, 502, '101 to another protocol: 502';
}
{ # through interception, with a browser's way of asking
    my $certs = certs();
    my $o     = origin(sub ($c) {
        my $r = $c->get_request;
        $c->put($switch);
        $c->note('upgraded ' . field($r, 'upgrade'));
        while ((my $frame = $c->get_some) ne '') {
            $c->put($frame);
        }
    }, tls => $certs->{good});
    my $t = Weir->start(set => [ 'resolve.good.test=127.0.0.1:' . $o->port,
        "upstream.upstream_ca=$certs->{ca}{cert}" ]);
    my $c = $t->client;
    $c->connect('good.test:443');
    ok $c->tls_client(sni => 'good.test', ca => $t->ca), 'TLS inside'
        or diag $c->{error};
    $c->put(request('GET', '/chat', [ 'Host: good.test', @ask ]));
    is $c->get_answer->{status}, 101, '101 through interception';
    for my $n (1, 1000, 60_000) {
        my $frame = pack('C C n', 0x82, 126, $n) . 'f' x $n;
        $c->put($frame);
        ok $c->get(length $frame) eq $frame, "an echo of $n bytes";
    }
    $c->close;
    # in the clear inside a tunnel, as browsers do for ws:// through a proxy
    my $l = listener();
    $c = $t->client;
    $c->put("CONNECT ${\ $l->addr} HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $l->accept;
    is $c->get_answer(connect => 1)->{status}, 200, 'ws:// in a tunnel';
    $c->put(request('GET', '/chat', [ 'Host: ' . $l->addr, @ask ]));
    is field($s->get_request, 'upgrade'), 'websocket', 'asks';
    $s->put($switch);
    is $c->get_answer->{status}, 101, 'and switches';
    $c->put('ping');
    is $s->get(4), 'ping', 'and carries';
    $t->stop;
}

$w->stop;
done_testing;
