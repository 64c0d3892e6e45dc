#!/usr/bin/perl
# HTTP/2 with origins: connections that many share, and what becomes of a
# request when one of them ends.
use v5.36;
use lib 't/lib';
use Digest::SHA qw(sha1_base64);
use Test::More;
use Weir;
use Weir::H2;

my $w = Weir->start(set => [ 'upstream.h2c=127.0.0.1', 'proxy.via=tester',
    'upstream.reuse_s=30', 'upstream.response_s=8' ], args => ['-v']);

sub client(%o) { return Weir::H2->client($w->client, %o) }

sub get($l, @rest) { return Weir::H2::get($l->addr, @rest) }

sub origin_of($l, %o) { return Weir::H2->server($l->accept, %o) }

sub fields_of($s, $name)
{
    return join '|', map { $_->[1] } grep { $_->[0] eq $name }
        $s->{fields}->@*;
}

{ # HTTP/1 client, HTTP/2 origin
    my $l = listener();
    my $c = $w->client;
    $c->put("POST http://${\ $l->addr}/a?b HTTP/1.1\r\nHost: x\r\n"
            . "X-One: 1\r\nCookie: a=1; b=2\r\nConnection: close, X-Hop\r\n"
            . "X-Hop: 1\r\nTE: trailers\r\nConnection: TE\r\n"
            . "Transfer-Encoding: chunked\r\n\r\n"
            . "2\r\nup\r\n0\r\nX-Sum: 7\r\n\r\n");
    my $o = origin_of($l);
    my $s = $o->next_request;
    is $s->{head}{':method'}, 'POST', 'h1 to h2: method';
    is $s->{head}{':path'}, '/a?b', 'path';
    is $s->{head}{':authority'}, $l->addr, 'Host becomes :authority';
    is $s->{head}{':scheme'}, 'http', 'scheme';
    is fields_of($s, 'cookie'), 'a=1|b=2', 'Cookie becomes crumbs';
    is fields_of($s, 'x-one'), '1', 'lower case';
    is fields_of($s, 'te'), 'trailers', 'te: trailers';
    is join('', map { fields_of($s, $_) }
            qw(connection x-hop transfer-encoding host)), '', 'no hop fields';
    is fields_of($s, 'via'), '1.1 tester', 'Via';
    $o->until(sub { $s->{end} });
    is $s->{body}, 'up', 'content';
    is_deeply $s->{trailers}, [ [ 'x-sum', 7 ] ], 'trailers';
    $o->put('HEADERS', 4, $s->{id}, Weir::H2::hpack(':status', 103, 'link',
        '</a>'));
    $o->reply($s->{id}, 200, [ 'x-two', 2, 'set-cookie', 'a', 'set-cookie',
        'b' ], 'down', open => 1);
    $o->put('HEADERS', 5, $s->{id}, Weir::H2::hpack('x-sum', 9));
    is $c->get_answer->{status}, 103, 'an interim answer';
    my $got = $c->get_answer;
    is $got->{status}, 200, 'status';
    is $got->{reason}, 'OK', 'with a reason of ours';
    is $got->{body}, 'down', 'content, chunked';
    is_deeply $got->{trailers}, [ [ 'x-sum', 9 ] ], 'trailers back';
    is join('|', fields($got, 'set-cookie')), 'a|b', 'Set-Cookie';
    like $w->wait_log(qr/exchange .* target=\S+a\?b /),
        qr/version=http\/1\.1 .* origin_version=http\/2/, 'the log';
}
{ # many clients, one connection
    my $l = listener();
    my @c = map { client() } 1 .. 5;
    my @id = map { $_->request([ get($l) ]) } @c;
    my $o = origin_of($l);
    for (@c) {
        my $s = $o->next_request;
        $o->reply($s->{id}, 200, [], "stream $s->{id}");
    }
    my @got = map { $c[$_]->answer($id[$_])->{body} } 0 .. 4;
    is scalar(grep { /^stream \d$/ } @got), 5, 'five clients are answered';
    ok !$l->waiting, 'over one connection';
}
{ # an origin with a limit
    my $l = listener();
    my $c = client();
    my $first = $c->request([ get($l, '/first') ]);
    my $o = origin_of($l, settings => Weir::H2::setting(3, 2));
    my $s1 = $o->next_request;
    my $second = $c->request([ get($l, '/second') ]);
    my $s2 = $o->next_request;
    my $third = $c->request([ get($l, '/third') ]);
    my $o2 = origin_of($l, settings => Weir::H2::setting(3, 2));
    my $s3 = $o2->next_request;
    is $s3->{head}{':path'}, '/third', 'over its limit: another connection';
    $o->reply($s1->{id}, 200, [], 'one');
    $o->reply($s2->{id}, 200, [], 'two');
    $o2->reply($s3->{id}, 200, [], 'three');
    is $c->answer($first)->{body} . $c->answer($second)->{body}
        . $c->answer($third)->{body}, 'onetwothree', 'all are answered';
}
for my $method ('GET', 'POST') { # refused
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', $method) ]);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->put('RST_STREAM', 0, $s->{id}, pack 'N', 7);
    $s = $o->next_request;
    ok $s, "$method: REFUSED_STREAM: it is sent again";
    $o->put('RST_STREAM', 0, $s->{id}, pack 'N', 7);
    is $c->answer($id)->{status}, 502, 'once';
}
for my $method ('GET', 'POST') { # GOAWAY
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', $method) ]);
    my $o = origin_of($l);
    $o->next_request;
    $o->put('GOAWAY', 0, 0, pack 'NN', 0, 0);
    my $o2 = origin_of($l);
    my $s = $o2->next_request;
    ok $s, "$method: GOAWAY before it was processed: on another connection";
    $o2->reply($s->{id}, 200, [], 'ok');
    is $c->answer($id)->{body}, 'ok', 'answered';
}
{ # GOAWAY that spares what it has
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l) ]);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->put('GOAWAY', 0, 0, pack 'NN', $s->{id}, 0);
    $o->put('PING', 0, 0, 'x' x 8);
    1 while $o->get_frame->{type} ne 'PING';
    my $next = $c->request([ get($l, '/next') ]);
    my $o2 = origin_of($l);
    my $s2 = $o2->next_request;
    is $s2->{head}{':path'}, '/next', 'GOAWAY: the next goes elsewhere';
    $o->reply($s->{id}, 200, [], 'first');
    $o2->reply($s2->{id}, 200, [], 'second');
    is $c->answer($id)->{body} . $c->answer($next)->{body}, 'firstsecond',
        'and the one in flight is answered';
    ok defined $o->ending, 'then the old connection is closed';
}
{ # an origin that closes
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l) ]);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->reply($s->{id}, 200, [], 'ok');
    is $c->answer($id)->{body}, 'ok', 'one answer';
    $id = $c->request([ get($l) ]);
    $o->next_request;
    $o->{wire}->close;
    my $o2 = origin_of($l);
    $s = $o2->next_request;
    ok $s, 'closed before an answer: a GET is sent again';
    $o2->reply($s->{id}, 200, [], 'again');
    is $c->answer($id)->{body}, 'again', 'and answered';
    $id = $c->request([ get($l, '/', 'POST') ]);
    $s = $o2->next_request;
    $o2->{wire}->close;
    is $c->answer($id)->{status}, 502, 'a POST is not';
}
{ # cut
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l) ]);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->reply($s->{id}, 200, [], 'half', open => 1);
    $o->put('RST_STREAM', 0, $s->{id}, pack 'N', 2);
    is $c->answer($id)->{reset}, 'INTERNAL_ERROR', 'an answer that is reset';
    my $h1 = $w->client;
    $h1->put("GET http://${\ $l->addr}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    $s = $o->next_request;
    $o->reply($s->{id}, 200, [ 'content-length', 9 ], 'half', open => 1);
    $o->put('RST_STREAM', 0, $s->{id}, pack 'N', 2);
    my $got = $h1->get_answer;
    is $got->{body}, 'half', 'towards HTTP/1: what came';
    ok !$got->{complete}, 'and it is cut';
}
{ # an early answer
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST') ], end => 0);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->reply($s->{id}, 413, [], 'no');
    $o->put('RST_STREAM', 0, $s->{id}, pack 'N', 0);
    my $a = $c->answer($id);
    is "$a->{status} $a->{body}", '413 no', 'early, with NO_ERROR: whole';
    $c->data($id, 'x' x 1000);
    $c->until(sub { $a->{reset} });
    is $a->{reset}, 'NO_ERROR', 'passed on the same way';
}
{ # gRPC: both directions at once, trailers, trailers only
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/S/M', 'POST'), 'te', 'trailers',
        'content-type', 'application/grpc' ], end => 0);
    my $o = origin_of($l);
    my $s = $o->next_request;
    is fields_of($s, 'te'), 'trailers', 'gRPC: te';
    $o->reply($s->{id}, 200, [ 'content-type', 'application/grpc' ], undef,
        open => 1);
    my $a = $c->stream($id);
    for my $n (1 .. 3) {
        $c->data($id, "up$n");
        $o->until(sub { $s->{body} =~ /up$n/ });
        $o->data($s->{id}, "down$n");
        $c->until(sub { $a->{body} =~ /down$n/ });
        like $a->{body}, qr/down$n/, "message $n, up and down";
    }
    $c->data($id, '', 1);
    $o->until(sub { $s->{end} });
    $o->put('HEADERS', 5, $s->{id}, Weir::H2::hpack('grpc-status', 0));
    $c->answer($id);
    is_deeply $a->{trailers}, [ [ 'grpc-status', 0 ] ], 'its trailers';
    $id = $c->request([ get($l, '/S/M', 'POST'), 'te', 'trailers' ],
        end => 0);
    $s = $o->next_request;
    $o->put('HEADERS', 5, $s->{id}, Weir::H2::hpack(':status', 200,
        'grpc-status', 5));
    $a = $c->answer($id);
    is fields_of($a, 'grpc-status'), 5, 'trailers only';
    is $a->{body}, '', 'without content';
}
{ # HEAD, lengths
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'HEAD') ]);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->reply($s->{id}, 200, [ 'content-length', 10 ]);
    my $a = $c->answer($id);
    is fields_of($a, 'content-length'), 10, 'HEAD keeps its length';
    is $a->{end}, 1, 'and ends';
    for my $bad ([ 'content-length', 3 ], [ 'connection', 'close' ],
        [ 'X-Upper', 1 ], [ 'x', "a\nb" ])
    {
        $id = $c->request([ get($l) ]);
        $s = $o->next_request;
        $o->reply($s->{id}, 200, $bad, 'four');
        $a = $c->answer($id);
        ok(($a->{status} // 0) == 502 || $a->{reset},
            "a bad answer ($bad->[0]) is none");
    }
    ok $c->alive, 'and harms no other stream';
}
{ # WebSocket with an origin that offers it
    my $l = listener();
    my $c = client();
    my $ws = [ ':method', 'CONNECT', ':protocol', 'websocket', ':scheme',
        'http', ':authority', $l->addr, ':path', '/chat' ];
    my $id = $c->request($ws, end => 0);
    my $o = origin_of($l, settings => Weir::H2::setting(8, 1));
    my $s = $o->next_request;
    is $s->{head}{':method'}, 'CONNECT', 'h2 to h2: a CONNECT';
    is $s->{head}{':protocol'}, 'websocket', 'with :protocol';
    is $s->{end}, undef, 'that does not end';
    $o->reply($s->{id}, 200, [], undef, open => 1);
    my $a = $c->stream($id);
    $c->until(sub { $a->{status} });
    is $a->{status}, 200, 'taken up';
    $c->data($id, 'ping');
    $o->until(sub { $s->{body} eq 'ping' });
    $o->data($s->{id}, 'pong');
    $c->until(sub { $a->{body} eq 'pong' });
    is "$s->{body} $a->{body}", 'ping pong', 'bytes both ways';
    $o->data($s->{id}, '', 1);
    $c->until(sub { $a->{end} });
    ok $a->{end}, 'its end';
    # from HTTP/1
    my $h1 = $w->client;
    $h1->put("GET http://${\ $l->addr}/chat HTTP/1.1\r\nHost: x\r\n"
            . "Connection: Upgrade\r\nUpgrade: websocket\r\n"
            . "Sec-WebSocket-Version: 13\r\n"
            . "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    $s = $o->next_request;
    is $s->{head}{':protocol'}, 'websocket', 'h1 to h2: a CONNECT';
    is fields_of($s, 'sec-websocket-key'), '', 'without a key';
    is fields_of($s, 'sec-websocket-version'), '13', 'with its version';
    $o->reply($s->{id}, 200, [], undef, open => 1);
    my $got = $h1->get_answer;
    is $got->{status}, 101, '200 is 101';
    is field($got, 'sec-websocket-accept'), 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=',
        'with the accept that the key wants';
    is lc field($got, 'upgrade'), 'websocket', 'and Upgrade';
    $h1->put('ping');
    $o->until(sub { $s->{body} eq 'ping' });
    $o->data($s->{id}, 'pong', 1);
    is $h1->get_eof, 'pong', 'bytes both ways, and the end';
}
{ # an origin that speaks HTTP/2, but WebSocket in HTTP/1 alone
    my $certs = certs();
    my $o = origin(sub ($c) {
        if (($c->{sock}->alpn_selected // '') eq 'h2') {
            my $h2 = Weir::H2->server($c);
            while (my $s = $h2->next_request) {
                $h2->reply($s->{id}, 200, [], 'h2');
            }
            return;
        }
        my $r = $c->get_request or return;
        $c->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                . "Upgrade: websocket\r\nSec-WebSocket-Accept: "
                . sha1_base64(field($r, 'sec-websocket-key')
                . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11') . "=\r\n\r\n");
        $c->put('pong' . $c->get(4));
        $c->get_eof;
    }, tls => { $certs->{good}->%*, alpn => [ 'h2', 'http/1.1' ] });
    my $w = Weir->start(set => [ 'resolve.good.test=127.0.0.1:' . $o->port,
        "upstream.upstream_ca=$certs->{ca}{cert}" ]);
    my $wire = $w->client;
    $wire->connect('good.test:443');
    $wire->tls_client(alpn => ['h2'], ca => $w->ca, sni => 'good.test')
        or die "TLS: $wire->{error}\n";
    my $c = Weir::H2->client($wire);
    my @at = (':scheme', 'https', ':authority', 'good.test', ':path', '/');
    for my $turn (1, 2) {
        is $c->answer($c->request([ ':method', 'GET', @at ]))->{body}, 'h2',
            'an origin that speaks HTTP/2';
        my $id = $c->request([ ':method', 'CONNECT', ':protocol', 'websocket',
            @at, 'sec-websocket-version', 13 ], end => 0);
        my $s = $c->stream($id);
        $c->until(sub { $s->{status} || $s->{reset} });
        is $s->{status}, 200, 'without RFC 8441: WebSocket all the same';
        $c->data($id, 'ping');
        $c->until(sub { length $s->{body} >= 8 || $s->{reset} });
        is $s->{body}, 'pongping', 'bytes both ways';
        $c->data($id, '', 1);
        $c->until(sub { $s->{end} || $s->{reset} });
        is $s->{end}, 1, 'and its end';
    }
    like $o->notes, qr{^GET / HTTP/1.1\|}m, 'by HTTP/1';
    $wire->close;
    $w->stop;
}
{ # an origin's settings: what we send it fits
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l, '/', 'POST'), 'x-one', 'two' ], end => 0);
    my $o = origin_of($l, settings => Weir::H2::setting(1, 0, 4, 1000));
    my $s = $o->next_request;
    is fields_of($s, 'x-one'), 'two', 'an origin without a dynamic table';
    $c->data($id, 'x' x 3000, 1);
    $o->until(sub { length $s->{body} >= 1000 });
    ok $o->alive, 'a window of 1000';
    is length $s->{body}, 1000, 'is kept to';
    $o->put('WINDOW_UPDATE', 0, $s->{id}, pack 'N', 5000);
    $o->until(sub { $s->{end} });
    is length $s->{body}, 3000, 'until it is opened';
    $o->reply($s->{id}, 200, [], 'ok');
    is $c->answer($id)->{body}, 'ok', 'answered';
    $id = $c->request([ get($l, '/again'), 'x-one', 'two' ]);
    $s = $o->next_request;
    is_deeply $o->{table}, [], 'and nothing was put in the table';
    $o->reply($s->{id}, 200, [], 'ok');
    $c->answer($id);
}
{ # an origin that is silent is asked whether it lives
    my $l = listener();
    my $c = client();
    my $id = $c->request([ get($l) ]);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->reply($s->{id}, 200, [], 'ok');
    is $c->answer($id)->{body}, 'ok', 'an answer';
    $o->{mute} = 1; # no PING is answered
    { # what is on its way, and then the one wait that has to last
        local $o->{wire}{limit} = 5.5;
        ok !eval { 1 while $o->get_frame; 1 }, 'then nothing for a while';
    }
    $id = $c->request([ get($l) ]);
    my $f;
    1 while ($f = $o->get_frame) && $f->{type} eq 'SETTINGS';
    is $f->{type}, 'PING', 'before the next request comes a PING';
    # no answer to it: the request goes elsewhere, whatever its method
    my $o2 = origin_of($l);
    $s = $o2->next_request;
    $o2->reply($s->{id}, 200, [], 'elsewhere');
    is $c->answer($id)->{body}, 'elsewhere', 'unanswered: another connection';
}
$w->stop;
{ # sessions that nobody uses
    my $short = Weir->start(set => [ 'upstream.h2c=127.0.0.1',
        'upstream.reuse_s=1' ]);
    my $l = listener();
    my $c = Weir::H2->client($short->client);
    my $id = $c->request([ get($l) ]);
    my $o = origin_of($l);
    my $s = $o->next_request;
    $o->reply($s->{id}, 200, [], 'ok');
    is $c->answer($id)->{body}, 'ok', 'an answer';
    is $o->ending, 'NO_ERROR', 'idle for reuse_s: GOAWAY, and closed';
    $short->stop('weir that reuses nothing');
}
done_testing;
