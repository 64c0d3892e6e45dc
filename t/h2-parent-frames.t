#!/usr/bin/perl
# A parent that speaks HTTP/2, frame by frame: many tunnels on one connection,
# plain requests beside them, what a stream's end and reset mean, and what bad
# ones do.  RFC 9113 section 8.5.
use v5.36;
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Weir::H2;

my $certs = certs();
my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
my $plain = origin(sub ($c) { $c->put($hello) while $c->get_request });
my $http  = 'http://127.0.0.1:' . $plain->port;
my $ca    = $certs->{ca}{cert};
my @set   = ("upstream.upstream_ca=$ca", "upstream.parent_ca=$ca",
    'upstream.breaker=no', 'proxy.grace_s=1', 'log.level=debug');
my $home = scratch('home', 1);

sub weir(@more)
{
    return Weir->start(home => $home, set => [ @set, @more ]);
}

# ---- scripted: step by step
my $l = listener();
my $w = weir('upstream.parent=https://us%40er:p%20w@127.0.0.1:' . $l->port,
    'upstream.response_s=2', 'proxy.head_s=2', 'proxy.via=first',
    'intercept.sniff_ms=300');

# The parent's side of a new connection.
sub parent($l, %o)
{
    my $s = $l->accept;
    $s->tls_server($certs->{good}->%*, alpn => ['h2']);
    return Weir::H2->server($s, %o);
}

sub ask($w, $target = 'name.test:443', @fields)
{
    my $c = $w->client;
    $c->put("CONNECT $target HTTP/1.1\r\nHost: $target\r\n"
        . join('', map { "$_\r\n" } @fields) . "\r\n");
    return $c;
}

sub head($s, $name)
{
    my ($f) = grep { $_->[0] eq $name } $s->{head}{fields}->@*;
    return $f ? $f->[1] : undef;
}

my $c = ask($w, 'name.test:443', 'Proxy-Authorization: Basic Y2xpZW50Om93bg==',
    'Via: 1.1 before');
my $p = parent($l, settings => Weir::H2::setting(3 => 100));
my $s = $p->next_request;
is $s->{head}{':method'}, 'CONNECT', 'CONNECT';
is $s->{head}{':authority'}, 'name.test:443', 'by name';
is join(' ', sort grep { /^:/ } keys $s->{head}->%*), ':authority :method',
    'and no other pseudo-field';
is head($s, 'proxy-authorization'), 'Basic dXNAZXI6cCB3', 'Basic from the URL';
like head($s, 'via'), qr/^1\.1 before, \S+ first$/, 'Via, with all of us';
$p->reply($s->{id}, 103, [ link => 'x' ], undef, open => 1);
$p->put('HEADERS', 'END_HEADERS', $s->{id},
    Weir::H2::hpack(':status', 299, 'content-length', 7));
$p->data($s->{id}, 'glued');
is $c->get_answer(connect => 1)->{status}, 200, 'any 2xx opens, behind 1xx';
is $c->get(5), 'glued', 'what is glued to it is delivered';
$c->put("\0opaque");
ok $p->until(sub { $s->{body} eq "\0opaque" }), 'up';
$p->data($s->{id}, 'down');
is $c->get(4), 'down', 'and down';

{ # a second one, on the same connection
    my $c2 = ask($w, '[::1]:8443');
    my $s2 = $p->next_request;
    is $s2->{id}, 3, 'another tunnel, another stream';
    is $s2->{head}{':authority'}, '[::1]:8443', 'an IPv6 target';
    is head($s2, 'proxy-authorization'), 'Basic dXNAZXI6cCB3',
        'with credentials of its own';
    $p->reply($s2->{id}, 200, [], undef, open => 1);
    $c2->get_answer(connect => 1);
    $c2->put('last words');
    $c2->shut;
    ok $p->until(sub { $s2->{end} }), 'the client\'s end';
    is $s2->{body}, 'last words', 'behind its last words';
    $p->data($s2->{id}, 'still here');
    is $c2->get(10), 'still here', 'the other direction goes on';
    $p->data($s2->{id}, 'done', 1);
    is $c2->get_eof, 'done', 'to its own end';
    is $c2->how, 'eof', 'which is one';
    # the origin ends first
    $c2 = ask($w, 'name.test:444');
    $s2 = $p->next_request;
    $p->reply($s2->{id}, 200, [], undef, open => 1);
    $c2->get_answer(connect => 1);
    $p->data($s2->{id}, 'bye', 1);
    is $c2->get_eof, 'bye', 'the origin\'s end';
    is $c2->how, 'eof', 'as one';
    $c2->put('x' x 100_000);
    $c2->shut;
    ok $p->until(sub { length $s2->{body} > 65000 }),
        'and what the client says then, up to the window';
    $p->put('WINDOW_UPDATE', 0, 0, pack 'N', 200_000);
    $p->put('WINDOW_UPDATE', 0, $s2->{id}, pack 'N', 200_000);
    $p->until(sub { $s2->{end} || $s2->{reset} });
    is length $s2->{body}, 100_000, 'and all of it';
    is $s2->{reset}, undef, 'not reset';
}
{ # resets
    my $c2 = ask($w);
    my $s2 = $p->next_request;
    $p->reply($s2->{id}, 200, [], undef, open => 1);
    $c2->get_answer(connect => 1);
    $p->data($s2->{id}, 'part');
    is $c2->get(4), 'part', 'a part';
    $p->put('RST_STREAM', 0, $s2->{id}, pack 'N', 10);
    is $c2->get_eof, '', 'the parent resets the stream';
    is $c2->how, 'reset', 'and the client sees a reset';
    $c2 = ask($w);
    $s2 = $p->next_request;
    $p->reply($s2->{id}, 200, [], undef, open => 1);
    $c2->get_answer(connect => 1);
    $c2->put('part');
    $p->until(sub { $s2->{body} eq 'part' });
    $c2->reset;
    ok $p->until(sub { $s2->{reset} }), 'the client resets';
    is $s2->{reset}, 'CANCEL', 'and so do we';
}
{ # many resets are no flood: each of them ends what we began
    my $refused = 0;
    for (1 .. 520) {
        my $c2 = ask($w);
        my $s2 = $p->next_request;
        $p->put('RST_STREAM', 0, $s2->{id}, pack 'N', 10);
        $refused++ if $c2->get_answer(connect => 1)->{status} == 502;
    }
    is $refused, 520, 'tunnels that the parent resets, in a row';
    unlike $w->log, qr/left out/, 'it is the targets that fail, not the parent';
    $c->put('first');
    ok $p->until(sub { $s->{body} =~ /first$/ }), 'the first tunnel still stands';
}
{ # plain requests on the same connection
    my $k = $w->client;
    for my $n (1, 2) {
        $k->put("GET http://plain.test:81/$n?q HTTP/1.1\r\nHost: plain.test:81\r\n"
            . "Proxy-Authorization: Basic Y2xpZW50Om93bg==\r\n\r\n");
        my $r = $p->next_request;
        is join('|', map { $r->{head}{$_} } ':method', ':scheme', ':authority',
            ':path'), "GET|http|plain.test:81|/$n?q", "request $n is a request";
        is join('|', map { $_->[1] } grep { $_->[0] eq 'proxy-authorization' }
            $r->{head}{fields}->@*), 'Basic dXNAZXI6cCB3',
            'with credentials, and not the client\'s';
        $p->reply($r->{id}, 200, [], 'hello');
        is $k->get_answer->{body}, 'hello', 'answered';
    }
    $k->put("POST http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n"
        . "Content-Length: 4\r\n\r\nbody");
    my $r = $p->next_request;
    $p->until(sub { $r->{end} });
    is $r->{body}, 'body', 'content goes up';
    $p->reply($r->{id}, 407, [ 'proxy-authenticate' => 'Basic realm=x' ], 'no');
    my $got = $k->get_answer;
    is $got->{status}, 502, 'its 407: 502';
    like $got->{body}, qr/answered 407/, 'which says so';
    is field($got, 'proxy-authenticate'), undef, 'and keeps the challenge';
    # refused: once more
    $k->put("GET http://plain.test/again HTTP/1.1\r\nHost: plain.test\r\n\r\n");
    $r = $p->next_request;
    $p->put('RST_STREAM', 0, $r->{id}, pack 'N', 7);
    $r = $p->next_request;
    is $r->{head}{':path'}, '/again', 'a refused request goes out again';
    $p->reply($r->{id}, 200, [], 'then');
    is $k->get_answer->{body}, 'then', 'and is answered';
    # a WebSocket needs a tunnel
    $k->put("GET http://plain.test/ws HTTP/1.1\r\nHost: plain.test\r\n"
        . "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    $r = $p->next_request;
    is $r->{head}{':authority'}, 'plain.test:80', 'WebSocket: CONNECT';
    $p->reply($r->{id}, 200, [], undef, open => 1);
    $p->until(sub { $r->{body} =~ /\r\n\r\n/ });
    like $r->{body}, qr{^GET /ws HTTP/1\.1\r\n}, 'then origin-form';
    $p->data($r->{id}, "HTTP/1.1 101 Switching Protocols\r\nConnection: "
        . "Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\2hi");
    is $k->get_answer->{status}, 101, 'granted';
    is $k->get(4), "\x81\2hi", 'frames pass';
    $k->close;
}
for ([ 407, 502, 'proxy_configuration_error' ], [ 403, 502, 'destination_unavailable' ],
    [ 503, 503, 'destination_unavailable' ], [ 504, 504, 'connection_timeout' ],
    [ 500, 502, 'destination_unavailable' ], [ 302, 502, 'destination_unavailable' ]) {
    my ($status, $want, $error) = @$_;
    my $c2 = ask($w);
    my $s2 = $p->next_request;
    $p->reply($s2->{id}, $status, [ 'proxy-authenticate' => 'Basic realm=x' ],
        'a body', open => $status == 403);
    my $got = $c2->get_answer(connect => 1);
    is $got->{status}, $want, "parent's $status: $want";
    like field($got, 'proxy-status'),
        qr/error=$error; received-status=$status\b/, 'Proxy-Status';
    like $got->{body}, qr{https://127\.0\.0\.1:@{[ $l->port ]} answered $status \w},
        'names the parent, its status and its text';
    ok $p->until(sub { $s2->{reset} }), 'the rest is not wanted'
        if $status == 403;
}
{ # under interception, and HTTP/2 behind it
    my $o = listener();
    my $c2 = ask($w, 'localhost:443');
    my $s2 = $p->next_request;
    $p->reply($s2->{id}, 200, [], undef, open => 1);
    $c2->get_answer(connect => 1);
    my $child = fork // die;
    if (!$child) { # the client
        my $good = $c2->tls_client(sni => 'localhost', ca => $w->ca);
        $c2->put(request('GET', 'https://localhost/')) if $good;
        my $got = $good ? $c2->get_answer : {};
        POSIX::_exit(($got->{status} // 0) == 502 ? 0 : 1);
    }
    ok $p->until(sub { $s2->{body} =~ /^\x16\x03/ }), 'our own ClientHello';
    $p->put('RST_STREAM', 0, $s2->{id}, pack 'N', 10);
    my $again = $p->next_request; # for the request, once more
    $p->put('RST_STREAM', 0, $again->{id}, pack 'N', 10);
    waitpid $child, 0;
    is $?, 0, 'a reset during the origin\'s handshake: 502 inside';
}
{ # REFUSED_STREAM: another connection; GOAWAY: another, and what is, goes on
    my $c2 = ask($w);
    my $s2 = $p->next_request;
    $p->put('RST_STREAM', 0, $s2->{id}, pack 'N', 7);
    my $p2 = parent($l);
    my $s3 = $p2->next_request;
    is $s3->{head}{':authority'}, 'name.test:443', 'refused: asked again elsewhere';
    $p2->reply($s3->{id}, 200, [], 'yes', open => 1);
    is $c2->get_answer(connect => 1)->{status}, 200, 'granted there';
    is $c2->get(3), 'yes', 'and carried';
    $p2->put('GOAWAY', 0, 0, pack 'NN', $s3->{id}, 0);
    $p->put('GOAWAY', 0, 0, pack 'NN', 999, 0);
    $p2->data($s3->{id}, 'more');
    is $c2->get(4), 'more', 'a tunnel outlives a GOAWAY';
    $p->data($s->{id}, 'more');
    is $c->get(4), 'more', 'the first one, too';
    ok $p2->alive && $p->alive, 'all is read';
    my $c4 = ask($w);
    my $p3 = parent($l, settings => Weir::H2::setting(3 => 1));
    my $s4 = $p3->next_request;
    $p3->reply($s4->{id}, 200, [], 'new', open => 1);
    is $c4->get_answer(connect => 1)->{status}, 200, 'a new one is elsewhere';
    # a parent that allows one stream
    my $c5 = ask($w);
    my $p4 = parent($l, settings => Weir::H2::setting(3 => 1));
    my $s5 = $p4->next_request;
    $p4->reply($s5->{id}, 200, [], 'one', open => 1);
    is $c5->get_answer(connect => 1)->{status}, 200, 'no room: one more connection';
    # the connection breaks
    $p3->{wire}->cut;
    is $c4->get_eof, 'new', 'a connection breaks';
    is $c4->how, 'reset', 'and so do its tunnels';
    $c5->close;
    ok $p4->until(sub { $s5->{end} || $s5->{reset} }), 'a client leaves: it ends';
}
$w->stop;

# ---- bad ones: an answer in time, whatever is asked, and they are left out
my $answer = sub (@fields) {
    return Weir::H2->side(undef)->frame('HEADERS', 4, 1,
        Weir::H2::hpack(@fields));
};
my %bad = (
    'closes'          => sub ($s) { $s->close },
    'cuts'            => sub ($s) { $s->cut },
    'hangs'           => sub ($s) { $s->get_eof },
    'never speaks'    => sub ($s) { $s->get_eof },
    'speaks HTTP/1'   => sub ($s) { $s->put("HTTP/1.1 200 OK\r\n\r\n" x 3); $s->get_eof },
    'speaks garbage'  => sub ($s) { $s->put("\xff" x 100); $s->get_eof },
    'resets'          => sub ($s) { $s->put(pack('CCCCCNN', 0, 0, 4, 3, 0, 1, 2)); $s->get_eof },
    'refuses'         => sub ($s) { $s->put(pack('CCCCCNN', 0, 0, 4, 3, 0, 1, 7)); $s->get_eof },
    'goes away'       => sub ($s) { $s->put(pack('CCCCCNNN', 0, 0, 8, 7, 0, 0, 0, 0)); $s->close },
    'is long'   => sub ($s) {
        my @part = unpack '(a16000)*', Weir::H2::hpack(':status', 200,
            map { ('a', $_ x 9000) } 'w' .. 'z');
        my $f = Weir::H2->side(undef);
        $s->put($f->frame('HEADERS', 0, 1, $part[0])
            . $f->frame('CONTINUATION', 0, 1, $part[1])
            . $f->frame('CONTINUATION', 4, 1, $part[2])); $s->get_eof },
    'is wordy'  => sub ($s) { $s->put($answer->(':status', 200, map { ('a', 'b') } 1 .. 300)); $s->get_eof },
    'has no status' => sub ($s) { $s->put($answer->('a', 'b')); $s->get_eof },
    'has an odd status' => sub ($s) { $s->put($answer->(':status', '2000')); $s->get_eof },
    'answers 101'   => sub ($s) { $s->put($answer->(':status', '101')); $s->get_eof },
    'sends data first' => sub ($s) { $s->put(Weir::H2->side(undef)->frame('DATA', 0, 1, 'x')); $s->get_eof },
    'ends in the head' => sub ($s) { $s->put(substr $answer->(':status', 200, 'a', 'bcdef'), 0, -3); $s->close },
    '1xx for ever' => sub ($s) {
        my $f = Weir::H2->side(undef);
        $s->put($f->frame('HEADERS', 4, 1, Weir::H2::hpack(':status', 103)) x 500); $s->get_eof },
    'drips' => sub ($s) {
        $s->put($_) && select undef, undef, undef, 0.3 for split //, $answer->(':status', 200, 'a', 'x' x 50) },
);
for my $what (sort keys %bad) {
    my $p = origin(sub ($s) {
        Weir::H2->server($s)->next_request if $what !~ /^never|^speaks|^closes|^cuts/;
        $bad{$what}->($s);
    }, tls => { $certs->{good}->%*, alpn => ['h2'] });
    for (['CONNECT', 'name.test:443', ['Host: name.test:443']],
        ['GET', 'http://plain.test/'],
        ['GET', 'http://plain.test/ws', ['Connection: Upgrade', 'Upgrade: websocket']]) {
        next if $_->[0] eq 'GET' && !$_->[2] && $what =~ /is long|1xx|drips/; # they may be an origin's
        my $w = weir('upstream.parent=https://127.0.0.1:' . $p->port,
            'upstream.response_s=1', 'proxy.head_s=2');
        # what is refused is asked a second time, and that is not answered
        my $late = $what =~ /hangs|drips|never/
            || ($what eq 'refuses' && $_->[1] eq 'http://plain.test/');
        my $from = time;
        my $got = $w->client->ask(@$_);
        is $got->{status}, $late ? 504 : 502, "$_->[0] $_->[1]: a parent that $what"
            or diag $got->{head}, substr $w->log, -3000;
        like $got->{body}, qr{https://127\.0\.0\.1:@{[ $p->port ]}}, 'is named'
            if $_->[0] eq 'CONNECT';
        ok time - $from < 10, 'in time';
        like $w->log, qr/ parent .*is left out for 1 s/, 'and left out'
            if $_->[0] eq 'CONNECT' || $_->[2];
        $w->stop;
    }
    $p->stop;
}
# what is long, but not too long
for my $n (190, 200, 201) {
    my $p = origin(sub ($s) {
        my $h = Weir::H2->server($s);
        my $r = $h->next_request;
        $h->reply($r->{id}, 200, [ map { ("f$_", 'v' x 50) } 1 .. $n ], 'in',
            open => 1);
        $h->ending;
    }, tls => { $certs->{good}->%*, alpn => ['h2'] });
    my $w = weir('upstream.parent=https://127.0.0.1:' . $p->port);
    my $got = $w->client->ask('CONNECT', 'name.test:443', ['Host: name.test:443']);
    is $got->{status}, $n > 200 ? 502 : 200, "$n fields";
    $w->stop;
}
# TLS that does not come about
for ([ 'says nothing', sub ($s) { $s->get_eof }, 504 ],
    [ 'speaks no TLS', sub ($s) { $s->put("HTTP/1.1 400 Bad\r\n\r\n"); $s->get_eof }, 502 ],
    [ 'closes', sub ($s) { $s->get(1); $s->close }, 502 ],
    [ 'drips', sub ($s) { while ($s->put("\x16")) { select undef, undef, undef, 0.2 } }, 502 ]) {
    my ($what, $serve, $want) = @$_;
    my $p = origin($serve);
    my $w = weir('upstream.parent=https://127.0.0.1:' . $p->port,
        'upstream.connect_s=1');
    for my $ask ([ 'CONNECT', 'name.test:443', ['Host: name.test:443'] ],
        [ 'GET', 'http://plain.test/' ]) {
        my $from = time;
        my $got = $w->client->ask(@$ask);
        is $got->{status}, $want, "$ask->[0]: an https parent that $what"
            or diag $got->{head};
        ok time - $from < 10, 'in time';
    }
    $w->stop;
}
{ # two that are each other's parent
    my @port = (free_port(), free_port());
    my @home = map { scratch('home', 1) } 0, 1;
    my @w = map {
        Weir->start(home => $home[$_], listen => "127.0.0.1:$port[$_]",
            set => [ @set, 'upstream.insecure=127.0.0.1',
                "upstream.parent=https://127.0.0.1:$port[1 - $_]" ])
    } 0, 1;
    my $r = curl($w[0], $http);
    is $r->{code}, 403, 'a loop by HTTP/2: 403';
    $r = curl($w[0], '-p', $http);
    is $r->{connect}, 502, 'a loop of CONNECT streams is refused';
    like $w[0]->log . $w[1]->log, qr/why=loop/, 'as a loop';
    $_->stop for @w;
}
{ # forward_proxy_auth
    my $l = listener();
    my $w = weir('upstream.parent=https://127.0.0.1:' . $l->port,
        'upstream.forward_proxy_auth=yes');
    my $c = ask($w, 'name.test:443');
    my $p = parent($l);
    my $s = $p->next_request;
    is head($s, 'proxy-authorization'), undef, 'nothing to forward';
    $p->reply($s->{id}, 407, [ 'proxy-authenticate', 'Basic realm="far"' ]);
    my $got = $c->get_answer(connect => 1);
    is $got->{status}, 407, 'the parent\'s 407 goes to the client';
    is field($got, 'proxy-authenticate'), 'Basic realm="far"', 'with its challenge';
    $c = ask($w, 'name.test:443', 'Proxy-Authorization: Basic Ym9iOng=');
    $s = $p->next_request;
    is head($s, 'proxy-authorization'), 'Basic Ym9iOng=', 'forwarded';
    $p->reply($s->{id}, 200, [], 'in', open => 1);
    is $c->get_answer(connect => 1)->{status}, 200, 'accepted';
    unlike $w->log, qr/Ym9i/, 'and not logged';
    $w->stop;
}
{ # and the next one serves
    my $p = origin(sub ($s) {
        my $h = Weir::H2->server($s);
        my $r = $h->next_request;
        $h->put('RST_STREAM', 0, $r->{id}, pack 'N', 7);
        $h->ending;
    }, tls => { $certs->{good}->%*, alpn => ['h2'] });
    my $w = weir('upstream.parent=https://127.0.0.1:' . $p->port . ', direct');
    is curl($w, '-p', $http)->{out}, 'hello', 'refused: the next parent';
    like $w->log, qr/left out.*refused/, 'the log says so';
    $w->stop;
}
done_testing;
