#!/usr/bin/perl
# Ways out through other proxies: real ones, bad ones, whom they serve, what
# they are told, and that nothing goes round in circles.
use v5.36;
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Ways;

my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
my $plain = origin(sub ($c) {
    while (my $r = $c->get_request) {
        $c->put($hello);
    }
});
my $tls  = origin(sub ($c) { $c->put($hello) while $c->get_request },
    tls => certs()->{good});
my $http = 'http://127.0.0.1:' . $plain->port;
my $https = 'https://127.0.0.1:' . $tls->port;
my $ca    = certs()->{ca}{cert};
my @set = ("upstream.upstream_ca=$ca", "upstream.parent_ca=$ca",
    'upstream.breaker=no', 'proxy.grace_s=1');

sub weir(@more)
{
    return Weir->start(set => [ @set, @more ]);
}

# ---- real proxies: plain requests, tunnels, interception, reuse
# nghttpx keeps its connections: it needs a proxy behind it that keeps them as
# well, as tinyproxy does not.
my @real = (
    [ squid(user => 'ann', password => 's3:cret'),
        'http://ann:s3%3Acret@127.0.0.1:%d' ],
    [ tinyproxy(),             'http://127.0.0.1:%d' ],
    [ nghttpx(squid()->{port}), 'https://127.0.0.1:%d' ],
    map({ [ $_, 'socks5://127.0.0.1:%d' ] } microsocks(), dante()),
);
for (@real) {
    my ($p, $form) = @$_;
    my $url = $form =~ s/%d/$p->{port}/r;
    for my $intercept ('yes', 'no') {
        my $n = "$p->{name}, interception $intercept";
        my $w = weir("upstream.parent=$url", "intercept.enable=$intercept");
        my $r = curl($w, "$http/1", "$http/2");
        is $r->{out}, 'hellohello', "$n: plain" or diag $r->{err};
        $r = curl($w, '--cacert', $intercept eq 'yes' ? $w->ca : $ca,
            "$https/1", "$https/2");
        is $r->{out}, 'hellohello', "$n: https" or diag $r->{err};
        $r = curl($w, '-p', "$http/3");
        is $r->{out}, 'hello', "$n: plain in a tunnel" or diag $r->{err};
        my $line = $w->wait_log(qr/parent_answer_ms=/);
        like $line, qr/parent=\w+:\/\/127\.0\.0\.1:$p->{port}\b/, "$n: logged";
        like $line, qr/parent_connect_ms=[\d.]+ parent_answer_ms=[\d.]+/,
            'with its times';
        unlike $w->log, qr/s3|cret/, "$n: no password in the log";
        $w->stop($n);
    }
}
like slurp($real[0][0]{log}), qr/CONNECT \S+ ann /, 'squid knows who we are';
unlike slurp($real[0][0]{log}), qr/NONE_NONE.*(GET|CONNECT)/, 'each time';
{ # the certificate of an https:// parent counts
    my $w = Weir->start(set => [ 'upstream.parent=https://127.0.0.1:'
        . $real[2][0]{port} ]);
    my $r = curl($w, $http);
    is $r->{code}, 502, 'an https parent of an unknown CA: 502';
    like $r->{out}, qr/unknown CA.*https:\/\/127/s, 'which says so';
    $w->stop;
}

# ---- scripted parents, step by step
my $l = listener();
my $w = weir('upstream.parent=http://us%40er:p%20w@127.0.0.1:' . $l->port,
    'upstream.response_s=2', 'proxy.head_s=2', 'proxy.via=first');

# A CONNECT through weir; the client's wire, the parent's, and what it was told.
sub begin($w, $l, $target = 'name.test:443', @fields)
{
    my $c = $w->client;
    $c->put("CONNECT $target HTTP/1.1\r\nHost: $target\r\n"
        . join('', map { "$_\r\n" } @fields) . "\r\n");
    my $s = $l->accept;
    return ($c, $s, $s->get_head);
}
{
    my ($c, $s, $head) = begin($w, $l, 'name.test:443',
        'Proxy-Authorization: Basic Y2xpZW50Om93bg==', 'Via: 1.1 before');
    like $head, qr/^CONNECT name\.test:443 HTTP\/1\.1\r\n/, 'CONNECT by name';
    like $head, qr/^Host: name\.test:443\r\n/m, 'Host';
    like $head, qr/^Proxy-Authorization: Basic dXNAZXI6cCB3\r\n/m,
        'Basic from the URL, decoded';
    unlike $head, qr/Y2xpZW50/, 'not the client\'s own';
    like $head, qr/^Via: 1\.1 before, 1\.1 first\r\n/m, 'Via, with all of us';
    $s->put("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n"
        . "Link: x\r\n\r\nHTTP/1.0 299 Fine\r\nContent-Length: 7\r\n"
        . "Transfer-Encoding: gzip\r\nContent-Length: 9\r\n\r\nglued");
    is $c->get_answer(connect => 1)->{status}, 200,
        'any 2xx opens, behind 1xx, whatever its lengths';
    is $c->get(5), 'glued', 'what is glued to it is delivered';
    $c->put("\0opaque");
    is $s->get(7), "\0opaque", 'up';
    $s->put('down');
    is $c->get(4), 'down', 'and down';
}
{ # a plain connection that is kept: absolute-form and credentials each time
    my $c = $w->client;
    for my $n (1 .. 3) {
        $c->put("GET http://plain.test/$n?q HTTP/1.1\r\nHost: plain.test\r\n"
            . "Proxy-Authorization: Basic Y2xpZW50Om93bg==\r\n\r\n");
        my $s = $n == 1 ? ($c->{parent} = $l->accept) : $c->{parent};
        my $head = $s->get_head;
        like $head, qr{^GET http://plain\.test/$n\?q HTTP/1\.1\r\n},
            "request $n in absolute-form";
        like $head, qr/^Proxy-Authorization: Basic dXNAZXI6cCB3\r\n/m,
            'with credentials';
        unlike $head, qr/Y2xpZW50/, 'not the client\'s';
        $s->put($hello);
        is $c->get_answer->{body}, 'hello', 'answered';
    }
    # another origin does not get this connection
    $c->put("GET http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n");
    my $s = $l->accept;
    like $s->get_head, qr{^GET http://other\.test/ }, 'another origin, another';
    $s->put($hello);
    $c->get_answer;
    # a WebSocket needs a tunnel
    $c->put("GET http://plain.test/ws HTTP/1.1\r\nHost: plain.test\r\n"
        . "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    $s = $l->accept;
    like $s->get_head, qr/^CONNECT plain\.test:80 /, 'WebSocket: CONNECT';
    $s->put("HTTP/1.1 200 OK\r\n\r\n");
    like $s->get_head, qr{^GET /ws HTTP/1\.1\r\n}, 'then origin-form';
    $s->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
        . "Upgrade: websocket\r\n\r\n\x81\2hi");
    is $c->get_answer->{status}, 101, 'granted';
    is $c->get(4), "\x81\2hi", 'frames pass';
}
for ([ 407, 502, 'proxy_configuration_error' ], [ 403, 502, 'destination_unavailable' ],
    [ 503, 503, 'destination_unavailable' ], [ 504, 504, 'connection_timeout' ],
    [ 500, 502, 'destination_unavailable' ], [ 302, 502, 'destination_unavailable' ]) {
    my ($status, $want, $error) = @$_;
    my ($c, $s) = begin($w, $l);
    $s->put("HTTP/1.1 $status Some Words\r\nContent-Length: 4\r\n"
        . "Proxy-Authenticate: Basic realm=x\r\n\r\nbody");
    my $got = $c->get_answer(connect => 1);
    is $got->{status}, $want, "parent's $status: $want";
    like field($got, 'proxy-status'),
        qr/error=$error; received-status=$status\b/, 'Proxy-Status';
    like $got->{body}, qr{http://127\.0\.0\.1:@{[ $l->port ]} answered $status Some Words},
        'names the parent, its status and its text';
    is field($got, 'proxy-authenticate'), undef, 'no challenge for the client';
}
{
    my $c = $w->client;
    $c->put("GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\n");
    my $s = $l->accept;
    $s->get_head;
    $s->put("HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=x\r\n"
        . "Content-Length: 0\r\n\r\n");
    my $got = $c->get_answer;
    is $got->{status}, 502, '407 to a plain request: 502';
    like $got->{body}, qr/answered 407 Who/, 'says so';
}
$w->stop;

# ---- parents that misbehave: an answer in time, and they are left out
my %bad = (
    'closes'           => sub ($s) { $s->close },
    'resets'           => sub ($s) { $s->reset },
    'hangs'            => sub ($s) { $s->get_eof },
    'ends in the head' => sub ($s) { $s->put("HTTP/1.1 200 OK\r\nA: b\r\n"); $s->close },
    'speaks garbage'   => sub ($s) { $s->put("SSH-2.0-garbage\r\n\r\n"); $s->get_eof },
    'speaks HTTP/2'    => sub ($s) { $s->put("\0\0\0\4\0\0\0\0\0" x 9); $s->get_eof },
    'is long'   => sub ($s) { $s->put("HTTP/1.1 200 OK\r\nA: " . 'x' x 40000); $s->get_eof },
    'is wordy'  => sub ($s) { $s->put("HTTP/1.1 200 OK\r\n" . "A: b\r\n" x 300 . "\r\n"); $s->get_eof },
    'drips'     => sub ($s) { while ($s->put('H')) { select undef, undef, undef, 0.3 } },
    '1xx for ever' => sub ($s) { $s->put("HTTP/1.1 102 P\r\n\r\n" x 500); $s->get_eof },
);
for my $what (sort keys %bad) {
    my $p = origin(sub ($s) { $s->get_head; $bad{$what}->($s) });
    my $want = $what =~ /hangs|drips|HTTP\/2/ ? 504 : 502;
    my $w = weir('upstream.parent=http://127.0.0.1:' . $p->port,
        $want == 504 ? ('upstream.response_s=1', 'proxy.head_s=2') : ());
    my $from = time;
    my $c    = $w->client;
    my $got  = $c->ask('CONNECT', 'name.test:443', ['Host: name.test:443']);
    is $got->{status}, $want, "a parent that $what" or diag $got->{head};
    like $got->{body}, qr{parent http://127\.0\.0\.1:@{[ $p->port ]}|http://127\.0\.0\.1:@{[ $p->port ]}},
        'is named';
    ok time - $from < 10, 'in time';
    like $w->log, qr/ parent .*is left out for 1 s/, 'and left out';
    if ($what !~ /drips|1xx/) {
        $got = $w->client->ask('GET', 'http://plain.test/');
        ok $got->{status} == 502 || $got->{status} == 504,
            "the same, plain: $got->{status}";
        $got = $w->client->ask('GET', 'http://plain.test/ws',
            [ 'Connection: Upgrade', 'Upgrade: websocket' ]);
        is $got->{status}, $want, 'the same for a WebSocket';
    }
    $w->stop;
    $p->stop;
}
# SOCKS parents
my %socks = (
    'closes'     => [ sub ($s) { $s->get(3); $s->close }, 502 ],
    'hangs'      => [ sub ($s) { $s->get(3); $s->get_eof }, 504 ],
    'is another' => [ sub ($s) { $s->get(3); $s->put("HTTP/1.1 400 x\r\n\r\n"); $s->get_eof }, 502 ],
    'wants a user' => [ sub ($s) { $s->get(3); $s->put("\5\xff"); $s->get_eof }, 502 ],
    map { my ($code, $status) = @$_;
        ("says $code" => [ sub ($s) { $s->get(3); $s->put("\5\0"); $s->get(16);
            $s->put("\5" . chr($code) . "\0\1\0\0\0\0\0\0"); $s->get_eof }, $status ])
    } [ 1, 502 ], [ 2, 502 ], [ 3, 502 ], [ 4, 502 ], [ 5, 502 ], [ 6, 504 ], [ 8, 502 ], [ 99, 502 ],
);
for my $what (sort keys %socks) {
    my $p = origin(sub ($s) { $socks{$what}[0]->($s) });
    my $w = weir('upstream.parent=socks5://127.0.0.1:' . $p->port,
        $what eq 'hangs' ? 'upstream.response_s=1' : ());
    my $got = $w->client->ask('CONNECT', 'name.test:443', ['Host: name.test:443']);
    is $got->{status}, $socks{$what}[1], "a SOCKS parent that $what"
        or diag $got->{head};
    like $got->{body}, qr{socks5://127\.0\.0\.1:@{[ $p->port ]}}, 'is named';
    $w->stop;
    $p->stop;
}
{ # names go as names, users by RFC 1929, what is glued is delivered
    my $l = listener();
    my $w = weir('upstream.parent=socks5://ann:pw@127.0.0.1:' . $l->port);
    my ($c) = $w->client;
    $c->put("CONNECT Name.Test:443 HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $l->accept;
    is $s->get(4), "\5\2\0\2", 'SOCKS hello';
    $s->put("\5\2");
    is $s->get(8), "\1\3ann\2pw", 'login';
    $s->put("\1\0");
    is $s->get(16), "\5\1\0\3\x09name.test\1\xbb", 'the name itself';
    $s->put("\5\0\0\3\4host\0\x50glued");
    is $c->get_answer(connect => 1)->{status}, 200, 'granted';
    is $c->get(5), 'glued', 'and what is glued delivered';
    $w->stop;
}

# ---- order, leaving out, coming back
{
    my $dead = closed_port();
    my ($one, $two) = (listener(), listener());
    my $w = weir("upstream.parent=http://127.0.0.1:$dead, socks5://127.0.0.1:"
        . $one->port . ', direct');
    my $c = $w->client;
    $c->put("CONNECT 127.0.0.1:${\ $two->port} HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $one->accept;
    is $s->get(3), "\5\1\0", 'the first fails, the second is asked';
    $s->close;
    my $t = $two->accept;
    is $c->get_answer(connect => 1)->{status}, 200, 'and after it `direct`';
    like $w->log, qr/ parent .*:$dead is left out for 1 s/, 'the log says so';
    $c = $w->client;
    $c->put("CONNECT 127.0.0.1:${\ $two->port} HTTP/1.1\r\nHost: x\r\n\r\n");
    is $c->get_answer(connect => 1)->{status}, 200, 'at once now';
    ok !$one->waiting, 'those that failed are left out';
    wait_for('the second parent to be tried again', sub {
        my $c = $w->client;
        $c->put("CONNECT 127.0.0.1:${\ $two->port} HTTP/1.1\r\nHost: x\r\n\r\n");
        if (Weir::first_of($one, $c) == $one) {
            my $s = $one->accept;
            $s->get(3);
            $s->put("\5\0");
            $s->get(10);
            $s->put("\5\0\0\1\0\0\0\0\0\0through");
            is $c->get_answer(connect => 1)->{status}, 200, 'tried again';
            is $c->get(7), 'through', 'through it';
            return 1;
        }
        $c->get_answer(connect => 1);
        return 0;
    });
    like $w->wait_log(qr/:$dead is left out for 2 s/), qr/2 s/,
        'the one that failed again waits twice as long';
    $w->stop;
}

# ---- whom they are for
{
    my ($a, $b) = (listener(), listener());
    my $w = Weir->start(set => \@set, conf => <<"END");
[upstream]
parent = http://127.0.0.1:${\ $a->port}
no_proxy = direct.test, 127.0.0.0/8, port.test:81

[parent second]
url = http://127.0.0.1:${\ $b->port}
hosts = .second.test, 10.0.0.0/8, *:8443

[parent none]
url = direct
hosts = here.test

[resolve]
direct.test = 127.0.0.1
www.direct.test = 127.0.0.1
here.test = 127.0.0.1:${\ $plain->port}
END
    for ([ 'http://any.test/', $a ], [ 'http://www.second.test/', $b ],
        [ 'http://second.test/', $b ], [ 'http://xsecond.test/', $a ],
        [ 'http://10.1.2.3/', $b ], [ 'http://any.test:8443/', $b ],
        [ 'http://port.test/', $a ], [ 'http://notdirect.test/', $a ]) {
        my ($url, $l) = @$_;
        my $c = $w->client;
        $c->put(request('GET', $url));
        my $s = $l->accept;
        like $s->get_head, qr{^GET \Q$url\E }, "$url: through " . ($l == $a ? 'a' : 'b');
        $s->put($hello);
        is $c->get_answer->{body}, 'hello', 'answered';
    }
    my $port = $plain->port;
    for my $url ("http://127.0.0.1:$port/", "http://direct.test:$port/",
        "http://www.direct.test:$port/", 'http://here.test/') {
        is curl($w, $url)->{out}, 'hello', "$url: directly";
    }
    ok !$a->waiting && !$b->waiting, 'no parent was asked';
    $w->stop;
}
{ # the environment
    my ($a, $b) = (listener(), listener());
    my $w = Weir->start(set => [ @set, 'upstream.parent=env' ], env => {
        http_proxy => '127.0.0.1:' . $a->port, HTTP_PROXY => 'http://192.0.2.1:1',
        ALL_PROXY => 'socks5://127.0.0.1:' . $b->port,
        no_proxy => 'direct.test,[::1],127.0.0.1' });
    my $c = $w->client;
    $c->put(request('GET', 'http://any.test/'));
    like $a->accept->get_head, qr{^GET http://any\.test/}, 'http_proxy';
    $c = $w->client;
    $c->put("CONNECT any.test:443 HTTP/1.1\r\nHost: x\r\n\r\n");
    is $b->accept->get(3), "\5\1\0", 'ALL_PROXY for the rest';
    is curl($w, $http)->{out}, 'hello', 'no_proxy';
    $w->stop;
    my $port = free_port();
    $w = Weir->start(listen => "127.0.0.1:$port",
        set => [ @set, 'upstream.parent=env' ],
        env => { all_proxy => "http://localhost:$port" });
    is curl($w, $http)->{out}, 'hello', 'an environment that names ourselves';
    is curl($w, '-p', $http)->{out}, 'hello', 'counts as direct';
    $w->stop;
}
{ # forward_proxy_auth
    my $l = listener();
    my $w = weir('upstream.parent=http://127.0.0.1:' . $l->port,
        'upstream.forward_proxy_auth=yes');
    my ($c, $s, $head) = begin($w, $l, 'name.test:443');
    unlike $head, qr/Proxy-Auth/, 'nothing to forward';
    $s->put("HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=\"far\"\r\n\r\n");
    my $got = $c->get_answer(connect => 1);
    is $got->{status}, 407, 'the parent\'s 407 goes to the client';
    is field($got, 'proxy-authenticate'), 'Basic realm="far"', 'with its challenge';
    ($c, $s, $head) = begin($w, $l, 'name.test:443', 'Proxy-Authorization: Basic Ym9iOng=');
    like $head, qr/^Proxy-Authorization: Basic Ym9iOng=\r$/m, 'forwarded';
    $s->put("HTTP/1.1 200 OK\r\n\r\n");
    is $c->get_answer(connect => 1)->{status}, 200, 'accepted';
    $c = $w->client;
    $c->put("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n"
        . "Proxy-Authorization: Basic Ym9iOng=\r\n\r\n");
    like $l->accept->get_head, qr/^Proxy-Authorization: Basic Ym9iOng=\r$/m,
        'with a plain request';
    unlike $w->log, qr/Ym9i/, 'and not logged';
    $w->stop;
}

# ---- two weirs: a chain works, a loop is refused
{
    my $b = Weir->start(set => [ @set, 'proxy.users=in:side' ]);
    for my $scheme ('http', 'socks5') {
        my $a = weir('upstream.parent=' . "$scheme://in:side\@" . $b->addr);
        is curl($a, $http)->{out}, 'hello', "chain by $scheme: plain";
        is curl($a, '-p', $http)->{out}, 'hello', "chain by $scheme: tunnel";
        $a->stop;
    }
    $b->stop;
    my @port = (free_port(), free_port());
    my @w = map {
        Weir->start(listen => "127.0.0.1:$port[$_]", set => [ @set,
            "upstream.parent=http://127.0.0.1:$port[1 - $_]" ])
    } 0, 1;
    is curl($w[0], $http)->{code}, 403, 'a loop: 403';
    my $from = time;
    my $r    = curl($w[0], '-p', $http);
    is $r->{connect}, 502, 'a loop of CONNECT is refused' or diag $r->{err};
    like $w[0]->log . $w[1]->log, qr/why=loop/, 'as a loop';
    ok time - $from < 5, 'at once';
    my $p   = free_port();
    my $own = Weir->start(listen => "127.0.0.1:$p",
        set => [ @set, "upstream.parent=http://127.0.0.1:$p" ]);
    is curl($own, $http)->{code}, 403, 'ourselves as a parent: 403';
    $_->stop for @w, $own;
}
for my $other ('socks5', 'http') { # SOCKS has no Via: found out all the same
    my @port = (free_port(), free_port());
    my @w = map {
        my $scheme = $_ ? $other : 'socks5';
        Weir->start(listen => "127.0.0.1:$port[$_]", set => [ @set,
            "upstream.parent=$scheme://127.0.0.1:$port[1 - $_]" ])
    } 0, 1;
    my $from = time;
    my $r = curl($w[0], $http);
    is $r->{code}, 502, "a loop by socks5 and $other is refused";
    like $r->{out}, qr/socks5:\/\/\S+ answered [12]/, 'says who refused';
    cmp_ok time - $from, '<', 5, 'soon';
    like $w[0]->log . $w[1]->log, qr/why=loop.*seems to ask us/, 'as a loop';
    is curl(undef, '--socks5-hostname', $w[0]->addr, $http)->{exit}, 97,
        'a client of SOCKS, too';
    $_->stop for @w;
}
{ # a crowd of clients on the parent's machine is no loop
    my $l = listener();
    my $w = weir('upstream.parent=socks5://127.0.0.1:' . $l->port);
    my @c = map {
        my $c = $w->client;
        $c->put("CONNECT crowd.test:443 HTTP/1.1\r\nHost: x\r\n\r\n");
        $c;
    } 1 .. 80;
    for my $n (1 .. 80) { # one after the other: some have to wait
        my $s = $l->accept;
        $s->get(3);
        $s->put("\5\0");
        $s->get(17);
        $s->put("\5\0\0\1\0\0\0\0\0\0");
        push $w->{kept}->@*, $s;
    }
    my @got = map { $_->get_answer(connect => 1)->{status} } @c;
    is scalar(grep { $_ == 200 } @got), 80, 'a crowd is no loop' or diag "@got";
    $w->stop;
}

# ---- mistakes in settings: told, without the password
for ('ftp://u:sEcr3t@h:1', 'http://u:sEcr3t@', 'http://u:sEcr3t%zz@h', 'http://u:sEcr3t@h:0',
    'http://u:sEcr3t@h/path', 'nonsense word') {
    my $r = weir_run([ '--set', "upstream.parent=$_", '-t' ]);
    if ($_ eq 'nonsense word') {
        is $r->{exit}, 0, 'a bare name is a host';
        next;
    }
    is $r->{exit}, 1, 'a malformed parent';
    like $r->{err}, qr/\[upstream\] parent: item 1 is no parent, allowed: http/, 'is told';
    unlike $r->{err}, qr/sEcr3t/, 'without its password';
}
{
    my $r = weir_run([ '-t', '-c', spew(scratch('ini'), "[parent x]\nurl = direct\n") ]);
    like $r->{err}, qr/\[parent x\] hosts: missing/, 'half a rule';
    $r = weir_run([ '-t', '-c', spew(scratch('ini'), "[parent x]\nurls = direct\n") ]);
    like $r->{err}, qr/:2: \[parent NAME\] urls: unknown key, did you mean url/, 'a wrong key';
}
done_testing;
