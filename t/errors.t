#!/usr/bin/perl
# What weir answers when it cannot do what was asked: the status, Proxy-Status
# (RFC 9209), and a body that a person can read.
use v5.36;
use Socket qw(AF_INET SOCK_STREAM inet_aton pack_sockaddr_in);
use Test::More;
use Weir;

my $w = Weir->start(set => [ 'intercept.enable=no', 'upstream.response_s=3',
    'upstream.connect_s=3', 'proxy.idle_s=6', 'proxy.via=tester' ]);

sub is_error($name, $got, $status, $error)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is $got->{status}, $status, "$name: $status" or diag $got->{head};
    like field($got, 'proxy-status'), qr/^[\w-]+;\s*error=$error(?:;|$)/,
        "$name: Proxy-Status says $error";
    ok $got->{complete}, "$name: complete";
}

# ---- refused
my $closed = closed_port();
my $url    = "http://127.0.0.1:$closed/";
{
    my $got = $w->client->ask('GET', $url);
    is_error('refused', $got, 502, 'connection_refused');
    like field($got, 'content-type'), qr{^text/plain}, 'plain by default';
    like field($got, 'date'), qr/^\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT$/,
        'says when';
    like $got->{body}, qr/127\.0\.0\.1:$closed/, 'names the target';
    like $got->{body}, qr/refused/i, 'and the reason';
    $got = $w->client->ask('GET', $url, ['Accept: text/html,*/*;q=0.8']);
    like field($got, 'content-type'), qr{^text/html}, 'HTML for a browser';
    like $got->{body}, qr/<!doctype html>.*refused/is, 'that says the same';
    like $got->{body}, qr/127\.0\.0\.1:$closed/, 'of the same target';
    $got = $w->client->ask('GET', $url, ['Accept: text/plain']);
    like field($got, 'content-type'), qr{^text/plain}, 'plain if asked for';
    $got = $w->client->ask('GET', $url,
        ['Accept: text/html;q=0.1, text/plain;q=0.9']);
    like field($got, 'content-type'), qr{^text/plain}, 'plain if liked better';
    my $c = $w->client;
    $got = $c->ask('HEAD', $url);
    is $got->{status}, 502, 'HEAD: the status';
    is $c->ask('GET', $url)->{status}, 502,
        'HEAD: no body, the connection goes on';
}
for my $type ('text/plain', 'text/html') { # a long target hides no reason
    my $got = $w->client->ask('GET', $url . 'x' x 12000, ["Accept: $type"]);
    like $got->{body}, qr/xxx\.\.\..*refused.*connection \d+/s,
        "$type: a long target is cut, and nothing else";
}
{ # what a client sends ends up in no page as HTML
    my $got = $w->client->ask('GET', "http://127.0.0.1:$closed/<script>x",
        ['Accept: text/html', 'X-A: <script>']);
    unlike $got->{body} // '', qr/<script>x/, 'nothing unescaped in the page';
}
{
    my $c   = $w->client;
    my $got = $c->ask('POST', $url, ['Content-Length: 5'], 'hello');
    is_error('refused POST', $got, 502, 'connection_refused');
    is $c->ask('GET', $url)->{status}, 502, 'its body is not the next request';
}
{
    my $c   = $w->client;
    my $got = $c->ask('GET', $url, ['Connection: close']);
    is $got->{status}, 502, 'an error to a client that closes';
    is $c->get_eof, '', 'is the last';
}
is_error('HTTP/1.0', do {
    my $c = $w->client;
    $c->put("GET $url HTTP/1.0\r\n\r\n");
    $c->get_answer;
}, 502, 'connection_refused');

# ---- names, RFC 6761 section 6.4
is_error('unknown name',
    $w->client->ask('GET', 'http://no-such-name.invalid/'),
    502, 'dns_error');

# ---- time
{
    my $l = listener();
    my $c = $w->client;
    $c->put("GET http://${\ $l->addr}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $l->accept;
    $s->get_request;
    is_error('no answer', $c->get_answer, 504,
        '(?:http_response_timeout|connection_read_timeout)');
    is $s->get_eof, '', 'no answer: the origin is let go';
}
{ # a listener whose queue is full does not answer a SYN
    socket my $full, AF_INET, SOCK_STREAM, 0 or die "socket: $!";
    bind $full, pack_sockaddr_in(0, inet_aton('127.0.0.1')) or die "bind: $!";
    listen $full, 0 or die "listen: $!";
    my ($port) = Socket::unpack_sockaddr_in(getsockname $full);
    my @waiting;
    my $stuck = 0;
    while (!$stuck && @waiting < 50) {
        socket my $s, AF_INET, SOCK_STREAM | Socket::SOCK_NONBLOCK(), 0
            or die "socket: $!";
        connect $s, getsockname $full;
        my $set = '';
        vec($set, fileno $s, 1) = 1;
        $stuck = select(undef, $set, undef, 0.3) == 0;
        push @waiting, $s;
    }
    ok $stuck, 'a listener that does not answer is made';
    is_error('not connected', $w->client->ask('GET', "http://127.0.0.1:$port/"),
        504, 'connection_timeout');
    my $c = $w->client;
    is_error('CONNECT, not connected',
        $c->ask('CONNECT', "127.0.0.1:$port", ["Host: 127.0.0.1:$port"]),
        504, 'connection_timeout');
}
{ # an origin that stops within its answer: cut, not completed
    my $l = listener();
    my $c = $w->client;
    $c->put("GET http://${\ $l->addr}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $l->accept;
    $s->get_request;
    $s->put("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
    my $got = $c->get_answer;
    is $got->{body}, 'hello', 'an origin that falls silent: what came';
    ok !$got->{complete}, 'looks cut';
}

# ---- loops, RFC 9110 section 7.6.3
{
    my $self = $w->addr;
    my $got  = never_seen($w, "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n"
            . "Via: 1.1 other, 1.1 tester\r\nConnection: close\r\n\r\n");
    is_error('Via names us', $got, 403, 'proxy_loop_detected');
    ok !$got->{seen}, 'Via names us: goes nowhere';
    $got = $w->client->ask('CONNECT', $self, ["Host: $self"]);
    is_error('CONNECT to ourselves', $got, 403, 'proxy_loop_detected');
    my $port = $w->port;
    $got = $w->client->ask('CONNECT', "localhost:$port",
        ["Host: localhost:$port"]);
    is $got->{status}, 403, 'CONNECT to ourselves by name: 403';
    $got = $w->client->ask('CONNECT', "127.0.0.2:$port",
        ["Host: 127.0.0.2:$port"]);
    ok $got->{status} >= 400,
        'CONNECT to another address of this machine, our port: none';
}
{
    my $w2 = Weir->start(set => [ 'intercept.enable=no',
        'resolve.loop.test=' . $w->addr ]);
    my $w3 = Weir->start(set => [ 'intercept.enable=no', 'proxy.via=third',
        'resolve.loop.test=' . $w2->addr ]);
    my $got = $w3->client->ask('GET', 'http://loop.test/');
    ok $got->{status}, 'a target that is another weir is answered';
    $_->stop for $w2, $w3;
    my $free = free_port();
    my $w4   = Weir->start(listen => "127.0.0.1:$free", set =>
            [ 'intercept.enable=no', "resolve.loop.test=127.0.0.1:$free" ]);
    $got = $w4->client->ask('GET', 'http://loop.test/');
    is_error('a name that resolves to us', $got, 403, 'proxy_loop_detected');
    $w4->stop;
}

# ---- a bad request is answered in the same manner
{
    my $c = $w->client;
    $c->put("GET http://127.0.0.1/ HTTP/1.1\r\nBad Name: x\r\n\r\n");
    my $got = $c->get_answer;
    is $got->{status}, 400, 'a bad request: 400';
    isnt $got->{body}, '', 'with a body that explains';
    is $c->get_eof, '', 'and the end';
    is $c->how, 'eof', 'in order, so that it can be read';
}
{ # also when much of it is unread: no reset may overtake the answer
    my $c = $w->client;
    $c->put("GET http://127.0.0.1/ HTTP/1.1\r\nBad Name: x\r\n"
            . "Content-Length: 1000000\r\n\r\n" . 'x' x 1_000_000);
    is $c->get_answer->{status}, 400, 'a bad request with a long body: 400';
}

# ---- curl shows it
{
    my $r = curl($w, $url);
    is $r->{code}, 502, 'curl: 502';
    like $r->{out}, qr/refused/i, 'curl: prints the reason';
    $r = curl($w, "https://127.0.0.1:$closed/");
    is $r->{connect}, 502, 'curl, CONNECT: 502';
}

$w->stop;
done_testing;
