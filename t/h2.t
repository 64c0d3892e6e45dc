#!/usr/bin/perl
# HTTP/2 with clients, step by step: what a stream carries arrives at an
# HTTP/1 origin as HTTP/1, and its answer comes back as HTTP/2.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H2;

my $w = Weir->start(set => [ 'proxy.via=tester', 'http2.stall_s=2',
    'proxy.idle_s=20', 'proxy.exchanges=300' ], args => ['-v']);
my $ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

sub client(%o) { return Weir::H2->client($w->client, %o) }

sub get($l, @rest) { return Weir::H2::get($l->addr, @rest) }

sub fields_of($s, $name)
{
    return join '|', map { $_->[1] } grep { $_->[0] eq $name }
        $s->{fields}->@*;
}

# ---- one request, one answer
{
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/a?b'), 'x-one', '1', 'cookie', 'a=1',
        'accept', '*/*', 'cookie', 'b=2', 'cookie', 'c=3', 'te', 'trailers' ]);
    my $o = $l->accept;
    my $seen = $o->get_request;
    is $seen->{first}, 'GET /a?b HTTP/1.1', 'h2 to h1: the request line';
    is field($seen, 'host'), $l->addr, ':authority becomes Host';
    is field($seen, 'cookie'), 'a=1; b=2; c=3', 'crumbs are one Cookie';
    is field($seen, 'x-one'), '1', 'a field';
    is field($seen, 'via'), '2 tester', 'Via names the version received';
    is field($seen, 'te'), 'trailers', 'TE: trailers';
    is field($seen, 'transfer-encoding'), undef, 'a request without content';
    $o->put("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" x 2
            . "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Two: 2\r\n"
            . "Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nConnection: x-hop\r\n"
            . "X-Hop: 1\r\nKeep-Alive: timeout=1\r\n\r\nok");
    my $s = $c->answer($id);
    is join(' ', map { $_->{':status'} } $s->{heads}->@*), '103 103 200',
        'each 1xx is passed on';
    is $s->{heads}[0]{fields}[0][1], '</a>', 'with its fields';
    is $s->{body}, 'ok', 'content';
    is fields_of($s, 'x-two'), '2', 'names in lower case';
    is fields_of($s, 'set-cookie'), 'a=b|c=d', 'Set-Cookie stays two';
    is fields_of($s, 'via'), '1.1 tester', 'Via on the answer';
    is fields_of($s, 'content-length'), '2', 'the length';
    is join('', map { fields_of($s, $_) } qw(connection x-hop keep-alive)),
        '', 'no field of the connection';
    # the same connections, again
    $id = $c->request([ get($l) ]);
    $o->get_request;
    $o->put($ok);
    is $c->answer($id)->{body}, 'ok', 'a second stream';
    like $w->wait_log(qr/exchange .* stream=3 /),
        qr/version=http\/2 .* origin_version=http\/1\.1/,
        'the log names stream and versions';
    is_deeply [ $w->log =~ / exchange n=(\d+) stream=[13] /g ], [ 1, 2 ],
        'and counts the requests of a session';
}
# ---- kinds of answers
for my $case (
    ['HEAD', "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", 200, '', '10'],
    ['GET', "HTTP/1.1 204 No Content\r\n\r\n", 204, '', ''],
    ['GET', "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304, '', ''],
    ['GET', "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, '', '0'],
    ['GET', "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        . "3\r\nabc\r\n0\r\n\r\n", 200, 'abc', ''],
    ['GET', "HTTP/1.0 200 OK\r\n\r\nuntil close", 200, 'until close', ''],
) {
    my ($method, $answer, $status, $body, $length) = @$case;
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', $method) ]);
    my $o = $l->accept;
    $o->get_request;
    $o->put($answer);
    $o->close;
    my $s = $c->answer($id);
    my ($what) = $answer =~ /^(.*?)\r\n\r\n/s;
    $what = "$method, " . $what =~ s/\r\n/, /gr;
    is $s->{status}, $status, $what;
    is $s->{body}, $body, '  its content';
    is fields_of($s, 'content-length'), $length, '  its length';
    is $s->{reset}, undef, '  a whole message';
}
{ # trailers
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST'), 'te', 'trailers' ], end => 0);
    $c->data($id, 'up');
    $c->put('HEADERS', 5, $id, Weir::H2::hpack('x-sum', '7'));
    my $o = $l->accept;
    my $seen = $o->get_request;
    is $seen->{body}, 'up', 'content of unknown length';
    ok $seen->{chunked}, 'is chunked for HTTP/1';
    is $seen->{trailers}[0][1], '7', 'trailers upwards';
    $o->put("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            . "2\r\nok\r\n0\r\nX-Sum: 9\r\n\r\n");
    my $s = $c->answer($id);
    is $s->{body}, 'ok', 'content';
    is_deeply $s->{trailers}, [ [ 'x-sum', '9' ] ], 'trailers downwards';
}
{ # length known
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST'), 'content-length', '5' ],
        end => 0);
    $c->data($id, 'abc');
    $c->data($id, 'de', 1);
    my $o = $l->accept;
    my $seen = $o->get_request;
    is field($seen, 'content-length'), 5, 'a length stays one';
    is $seen->{body}, 'abcde', 'its content';
    $o->put($ok);
    is $c->answer($id)->{body}, 'ok', 'the answer';
}
{ # 100-continue
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST'), 'content-length', '2',
        'expect', '100-continue' ], end => 0);
    my $o = $l->accept;
    like $o->get_head, qr/^expect: 100-continue/mi, 'Expect goes on';
    $o->put("HTTP/1.1 100 Continue\r\n\r\n");
    my $s = $c->stream($id);
    $c->until(sub { $s->{status} });
    is $s->{status}, 100, '100 comes back';
    $c->data($id, 'up', 1);
    is $o->get(2), 'up', 'then the content goes';
    $o->put($ok);
    is $c->answer($id)->{body}, 'ok', 'then the answer';
}
{ # streaming both ways on one stream
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST') ], end => 0);
    my $o = $l->accept;
    $o->get_head;
    $o->put("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    my $s = $c->stream($id);
    for my $n (1 .. 3) {
        $c->data($id, "up$n");
        like $o->get_until(qr/up$n\r\n/), qr/up$n/, "up $n while";
        $o->put("5\r\ndown$n\r\n");
        $c->until(sub { $s->{body} =~ /down$n/ });
        like $s->{body}, qr/down$n/, "down $n";
    }
    $c->data($id, '', 1);
    $o->get_until(qr/0\r\n\r\n/);
    $o->put("0\r\n\r\n");
    $c->answer($id);
    ok $s->{end}, 'both ends';
}
{ # an early answer
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST') ], end => 0);
    $c->data($id, 'some');
    my $o = $l->accept;
    $o->get_head;
    $o->put("HTTP/1.1 413 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
            . 'no');
    $o->close;
    my $s = $c->answer($id);
    is $s->{status}, 413, 'an early answer comes while content is sent';
    is $s->{body}, 'no', 'whole';
    $c->until(sub { $s->{reset} });
    is $s->{reset}, 'NO_ERROR', 'then the stream is reset without an error';
    ok $c->{n}{PING}, 'as soon as the client has the answer';
    ok $c->alive, 'and the connection goes on';
}
{ # one that finishes before it has seen the answer, and one that never tells
    my $c = client();
    for my $finishes (1, 0) {
        my $l = listener();
        my $id = $c->request([ get($l, '/', 'POST') ], end => 0);
        $c->data($id, 'some');
        my $o = $l->accept;
        $o->get_head;
        $o->put("HTTP/1.1 413 No\r\nContent-Length: 0\r\n"
                . "Connection: close\r\n\r\n");
        $o->close;
        $c->{mute} = 1;
        my $s = $c->answer($id);
        my $ping;
        $c->until(sub { $ping = $c->{last_ping} });
        ok !$s->{reset}, 'not before the client has answered a PING';
        $c->data($id, '', 1) if $finishes;
        $c->put('PING', 'ACK', 0, $ping) if $finishes;
        $c->until(sub { $s->{reset} }) if !$finishes;
        ok $c->alive, 'the connection goes on';
        is $s->{reset}, $finishes ? undef : 'NO_ERROR', $finishes
            ? 'one that finishes is not reset' : 'one that is silent is';
        delete $c->{last_ping};
        $c->{mute} = 0;
    }
}
# ---- what is cut looks cut
for my $case (
    ["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", 'a short length'],
    ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        'no last chunk'],
) {
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l) ]);
    my $o = $l->accept;
    $o->get_request;
    $o->put($case->[0]);
    $o->close;
    my $s = $c->answer($id);
    is $s->{reset}, 'INTERNAL_ERROR', "$case->[1]: the stream is reset";
    is $s->{end}, undef, '  and has no end';
    ok $c->alive, '  the connection goes on';
}
{ # a client that resets
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l) ]);
    my $o = $l->accept;
    $o->get_request;
    $c->put('RST_STREAM', 0, $id, pack 'N', 8);
    is $o->get_eof, '', 'a stream that is reset: the origin is let go';
    my $next = $c->request([ get($l) ]);
    $o = $l->accept;
    $o->get_request;
    $o->put($ok);
    is $c->answer($next)->{body}, 'ok', 'and others go on';
}
{ # an upload that is reset
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST') ], end => 0);
    $c->data($id, 'x' x 100);
    my $o = $l->accept;
    $o->get_until(qr/x{100}/);
    $c->put('RST_STREAM', 0, $id, pack 'N', 8);
    unlike $o->get_eof, qr/0\r\n\r\n/, 'an upload cut short has no last chunk';
}
{ # our own errors
    my $c = client();
    my $id = $c->request([ Weir::H2::get('127.0.0.1:' . closed_port()) ]);
    my $s = $c->answer($id);
    is $s->{status}, 502, 'a dead origin: 502';
    like fields_of($s, 'proxy-status'), qr/connection_refused/,
        'with the reason';
    $id = $c->request([ Weir::H2::get($w->addr, '/ca.pem') ]);
    like $c->answer($id)->{body}, qr/BEGIN CERTIFICATE/, 'our own pages';
    $id = $c->{next};
    $c->{next} += 2;
    my $block = Weir::H2::hpack(Weir::H2::get($w->addr),
        map { ("x-$_", 'y' x 1000) } 1 .. 80);
    my $first = substr $block, 0, 16000, '';
    $c->put('HEADERS', 1, $id, $first);
    $c->put('CONTINUATION', length $block > 16000 ? 0 : 4, $id,
        substr $block, 0, 16000, '') while length $block;
    is $c->answer($id)->{status}, 431, 'too large a head: 431';
}
{ # back-pressure: one stream that is paused stops no other
    my $l = listener();
    my $c = client(settings => Weir::H2::setting(4, 1000));
    my $slow = $c->request([ get($l, '/slow') ]);
    my $o1 = $l->accept;
    $o1->get_request;
    $o1->put("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" . 'x' x 1000000);
    $c->until(sub { length $c->stream($slow)->{body} >= 1000 });
    my $o;
    for my $n (1 .. 3) {
        my $id = $c->request([ get($l, "/$n") ]);
        $o //= $l->accept;
        $o->get_request;
        $o->put($ok);
        is $c->answer($id)->{body}, 'ok', "beside a paused stream: $n";
    }
    is length $c->stream($slow)->{body}, 1000, 'which has its window';
    my $s = $c->stream($slow);
    $c->until(sub { $s->{reset} });
    is $s->{reset}, 'CANCEL', 'and is given up in time';
    ok $c->alive, 'alone';
}

# ---- CONNECT
sub connect_to($c, $target)
{
    my $id = $c->request([ ':method', 'CONNECT', ':authority', $target ],
        end => 0);
    my $s = $c->stream($id);
    $c->until(sub { $s->{status} || $s->{reset} || $s->{end} });
    return ($id, $s);
}
{
    my $l = listener();
    my $c = client();
    my ($id, $s) = connect_to($c, 'localhost:' . closed_port());
    is $s->{status}, 502, 'CONNECT to a dead port: 502';
    ($id, $s) = connect_to($c, 'no-port');
    is $s->{status}, 400, 'CONNECT without a port: 400';
}
{
    my $plain = Weir->start(set => ['intercept.enable=no']);
    my $l = listener();
    my $c = Weir::H2->client($plain->client);
    my ($id, $s) = connect_to($c, $l->addr);
    is $s->{status}, 200, 'CONNECT: 200';
    is_deeply $s->{fields}, [], 'with no field';
    my $o = $l->accept;
    $o->put('first word');
    $c->until(sub { $s->{body} eq 'first word' });
    is $s->{body}, 'first word', 'the server may speak first';
    $c->data($id, 'hello');
    is $o->get(5), 'hello', 'bytes upwards';
    $c->data($id, '', 1);
    is $o->get_eof, '', 'END_STREAM is a FIN';
    $o->put('last word');
    $o->close;
    $c->until(sub { $s->{end} });
    is $s->{body}, 'first wordlast word', 'bytes downwards after it';
    ok $s->{end}, 'a FIN is END_STREAM';
    # resets
    ($id, $s) = connect_to($c, $l->addr);
    $o = $l->accept;
    $o->put('x');
    $c->until(sub { $s->{body} eq 'x' });
    $o->reset;
    $c->until(sub { $s->{reset} });
    is $s->{reset}, 'CONNECT_ERROR', 'a TCP reset is CONNECT_ERROR';
    ($id, $s) = connect_to($c, $l->addr);
    $o = $l->accept;
    $c->put('RST_STREAM', 0, $id, pack 'N', 8);
    $o->get_eof;
    is $o->how, 'reset', 'RST_STREAM is a TCP reset';
    # many at once
    my @open = map { [ connect_to($c, $l->addr) ] } 1 .. 200;
    is scalar(grep { $_->[1]{status} == 200 } @open), 200, '200 at once';
    my @far = map { $l->accept } @open;
    $c->data($_->[0], "stream $_->[0]") for @open;
    my %seen = map { $_->get_some => 1 } @far;
    is scalar(keys %seen), 200, 'each has its own bytes';
    $_->close for @far;
    $c->until(sub { !grep { !$_->[1]{end} && !$_->[1]{reset} } @open });
    is scalar(grep { $_->[1]{end} } @open), 200, 'and its own end';
    $plain->stop('weir that only tunnels');
}
{ # a tunnel to a client with a small window, and frames of ours
    my $l = listener();
    my $c = client(settings => Weir::H2::setting(4, 1000));
    my $id = $c->request([ ':method', 'CONNECT', ':authority', $l->addr ],
        end => 0);
    my $s = $c->stream($id);
    my $o = $l->accept;
    $c->until(sub { $s->{status} });
    $o->put('x' x 20_000);
    $o->close;
    $c->until(sub { length $s->{body} >= 1000 });
    ok $c->alive, 'CONNECT: a window of 1000';
    is length $s->{body}, 1000, 'is kept to';
    $c->put('WINDOW_UPDATE', 0, $id, pack 'N', 30_000);
    $c->until(sub { $s->{end} || $s->{reset} });
    is length $s->{body}, 20_000, 'until it is opened, to the end';
    is $s->{end}, 1, 'which is a clean one';
}
{ # looked into, by the hand-over
    my $l = listener();
    my $c = client();
    my ($id, $s) = connect_to($c, $l->addr);
    is $s->{status}, 200, 'CONNECT that may be looked into';
    my $o = $l->accept;
    $c->data($id, "GET /in HTTP/1.1\r\nHost: x\r\n\r\n");
    is $o->get_request->{target}, '/in', 'HTTP in a tunnel is proxied';
    $o->put($ok);
    $c->until(sub { $s->{body} =~ /ok$/ });
    like $s->{body}, qr/^Via: 1\.1 tester/m, 'as a request of its own';
    $c->data($id, '', 1);
    $c->until(sub { $s->{end} });
    ok $s->{end}, 'its end';
}
{ # HTTP/2 inside of CONNECT inside of HTTP/1
    my $l = listener();
    my $wire = $w->client;
    $wire->connect($l->addr);
    my $o = $l->accept;
    my $c = Weir::H2->client($wire);
    my $id = $c->request([ get($l, '/deep') ]);
    is $o->get_request->{target}, '/deep', 'a preface behind CONNECT';
    $o->put($ok);
    is $c->answer($id)->{body}, 'ok', 'is an HTTP/2 session';
}

# ---- WebSocket (RFC 8441)
{
    my $l = listener();
    my $c = client();
    my $id = $c->request([ ':method', 'CONNECT', ':protocol', 'websocket',
        ':scheme', 'http', ':authority', $l->addr, ':path', '/chat',
        'sec-websocket-version', '13', 'origin', 'http://x' ], end => 0);
    my $o = $l->accept;
    my $seen = $o->get_request;
    is $seen->{first}, 'GET /chat HTTP/1.1', 'an extended CONNECT is a GET';
    is lc field($seen, 'upgrade'), 'websocket', 'with Upgrade';
    like field($seen, 'sec-websocket-key'), qr/^[\w+\/]{22}==$/, 'and a key';
    require Digest::SHA;
    my $accept = Digest::SHA::sha1_base64(field($seen, 'sec-websocket-key')
            . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11') . '=';
    $o->put("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            . "Connection: Upgrade\r\nSec-WebSocket-Accept: $accept\r\n\r\n");
    my $s = $c->stream($id);
    $c->until(sub { $s->{status} });
    is $s->{status}, 200, '101 is 200';
    $c->data($id, 'ping');
    is $o->get(4), 'ping', 'bytes up';
    $o->put('pong');
    $c->until(sub { $s->{body} eq 'pong' });
    is $s->{body}, 'pong', 'bytes down';
    $o->close;
    $c->until(sub { $s->{end} });
    ok $s->{end}, 'its end';
}
{
    my $l = listener();
    my $c = client();
    my $id = $c->request([ ':method', 'CONNECT', ':protocol', 'websocket',
        ':scheme', 'http', ':authority', $l->addr, ':path', '/chat' ],
        end => 0);
    my $o = $l->accept;
    $o->get_request;
    $o->put("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            . "Connection: Upgrade\r\nSec-WebSocket-Accept: nonsense\r\n\r\n");
    is $c->answer($id)->{status}, 502, 'a wrong Sec-WebSocket-Accept: 502';
    $id = $c->request([ ':method', 'CONNECT', ':protocol', 'websocket',
        ':scheme', 'http', ':authority', $l->addr, ':path', '/chat' ],
        end => 0);
    $o = $l->accept;
    $o->get_request;
    $o->put("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    my $s = $c->answer($id);
    is "$s->{status} $s->{body}", '403 no', 'a refusal is passed on';
    $id = $c->request([ ':method', 'CONNECT', ':protocol', 'websocket',
        ':scheme', 'http', ':authority', $l->addr, ':path', '/chat' ],
        end => 0);
    $o->get_request;
    $o->put($ok);
    is $c->answer($id)->{status}, 502, '200 without an upgrade is no success';
}

# ---- the end
{
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l) ]);
    my $o = $l->accept;
    $o->get_request;
    $w->signal('TERM');
    $c->until(sub { $c->{goaway} });
    is $c->{goaway}, 'NO_ERROR', 'TERM sends GOAWAY';
    is $c->{last}, $id, 'that names the stream in flight';
    $o->put($ok);
    is $c->stream($id)->{end}, undef, 'which is not over';
    $c->until(sub { $c->stream($id)->{end} });
    is $c->stream($id)->{body}, 'ok', 'and finishes';
    is $c->ending, 'NO_ERROR', 'then the connection ends';
}
$w->stop;
done_testing;
