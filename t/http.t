#!/usr/bin/perl
# Requests and answers of HTTP/1.1 and 1.0 through weir: forms of the target,
# methods, bodies, versions.  RFC 9110, RFC 9112.
use v5.36;
use Test::More;
use Weir;

my $w = Weir->start(set => ['intercept.enable=no']);

# ---- forms of the target, RFC 9112 section 3.2
{
    my ($seen, $got) = through($w,
        "GET http://ORIGIN/a/b?c=d HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-Y: z\r\n\r\nhello");
    is $seen->{target}, '/a/b?c=d', 'absolute-form goes on as origin-form';
    is $seen->{version}, 'HTTP/1.1', 'as HTTP/1.1';
    is $got->{status}, 200, 'status comes back';
    is $got->{reason}, 'Fine', 'reason comes back';
    is $got->{body}, 'hello', 'body comes back';
    is field($got, 'X-Y'), 'z', 'field comes back';
}
{
    my ($seen) = through($w, "GET http://ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n");
    is $seen->{target}, '/', 'an empty path becomes /';
}
{
    my ($seen) = through($w,
        "GET http://ORIGIN?q=1 HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n");
    is $seen->{target}, '/?q=1', 'an empty path before a query too';
}
{
    my ($seen) = through($w,
        "GET HTTP://ORIGIN/%7Ea//b/../c HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n");
    is $seen->{target}, '/%7Ea//b/../c', 'the path is not rewritten';
}
{
    my ($seen) = through($w,
        "OPTIONS http://ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n");
    is $seen->{target}, '*', 'OPTIONS without a path is asterisk-form';
}
{
    my $c = $w->client;
    my $r = $c->ask('OPTIONS', '*', ['Host: ' . $w->addr]);
    is int($r->{status} / 100), 2, 'OPTIONS * to weir is answered by weir';
    ok $r->{complete}, 'and complete';
}

# ---- methods and bodies
for my $method (qw(POST PUT PATCH DELETE PROPFIND)) {
    my ($seen, $got) = through($w, "$method http://ORIGIN/x HTTP/1.1\r\n"
            . "Host: ORIGIN\r\nContent-Length: 4\r\n\r\nbody",
        "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok");
    is "$seen->{method} $seen->{body}", "$method body", "$method carries a body";
    is $got->{status}, 201, "$method is answered";
}
{
    my ($seen, $got, $c) = through($w,
        "HEAD http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", head => 1);
    is $seen->{method}, 'HEAD', 'HEAD goes on';
    is field($got, 'content-length'), 500, 'HEAD: the length stays';
    my (undef, $next) = through($w,
        "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", client => $c);
    is $next->{body}, 'ok', 'HEAD: no body, the connection goes on';
}
for my $head ("204 No Content\r\n", "304 Not Modified\r\nETag: \"e\"\r\n",
    "304 Not Modified\r\nContent-Length: 77\r\n") {
    my ($status) = $head =~ /^(\d+)/;
    my (undef, $got, $c) = through($w,
        "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 $head\r\n");
    is $got->{status}, $status, "$status has no body";
    is field($got, 'transfer-encoding'), undef, "$status is not chunked";
    my (undef, $next) = through($w,
        "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", client => $c);
    is $next->{body}, 'ok', "$status: the connection goes on";
}
{
    my ($seen, $got) = through($w, "POST http://ORIGIN/x HTTP/1.1\r\n"
            . "Host: ORIGIN\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    is field($seen, 'content-length'), 0, 'POST of nothing says length 0';
    is field($got, 'content-length'), 0, 'an answer of nothing says length 0';
    ok $got->{complete}, 'and is complete';
}
{
    my ($seen) = through($w, "\r\nGET http://ORIGIN/x HTTP/1.1\r\n"
            . "Host: ORIGIN\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n");
    is $seen->{target}, '/x', 'an empty line before a request is ignored';
}

# ---- versions
{
    my ($seen, $got, $c) = through($w, "GET http://ORIGIN/x HTTP/1.0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            . "5\r\nhello\r\n0\r\n\r\n");
    is $seen->{version}, 'HTTP/1.1', 'a 1.0 client is served by 1.1 upstream';
    ok field($seen, 'host'), 'which gets a Host';
    is field($got, 'transfer-encoding'), undef, '1.0 client: never chunked';
    is $got->{body}, 'hello', '1.0 client: the body until close';
    is $c->how, 'eof', '1.0 client: closed';
}
{
    my $one = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    my ($seen, $got, $c) = through($w, "GET http://ORIGIN/x HTTP/1.0\r\n"
            . "Host: ORIGIN\r\nConnection: keep-alive\r\n\r\n", $one);
    is $got->{body}, 'ok', '1.0 client that would keep alive';
    unlike field($got, 'connection') // '', qr/keep-alive/i,
        'is not told that it may: RFC 9112 section 9.3';
    is $c->get_eof, '', 'and is closed';
    is $c->how, 'eof', 'in order';
}
{
    my (undef, $got, $c) = through($w,
        "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end", last => 1);
    is $got->{body}, 'until the end', '1.0 origin: until close';
    ok $got->{complete}, 'is complete for the client';
    is $got->{version}, 'HTTP/1.1', 'which is told 1.1';
}
{
    my (undef, $got) = through($w,
        "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", last => 1);
    is $got->{body}, 'abc', '1.0 origin with a length';
}

# ---- Max-Forwards, RFC 9110 section 7.6.2
{
    my $got = never_seen($w, "OPTIONS http://ORIGIN/x HTTP/1.1\r\n"
            . "Host: ORIGIN\r\nMax-Forwards: 0\r\nConnection: close\r\n\r\n");
    is int($got->{status} / 100), 2, 'OPTIONS with Max-Forwards 0: from weir';
    ok !$got->{seen}, 'not from the origin';
    $got = never_seen($w, "TRACE http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n"
            . "Max-Forwards: 0\r\nX-Mark: 77\r\nCookie: secret=1\r\n"
            . "Connection: close\r\n\r\n");
    is $got->{status}, 200, 'TRACE with Max-Forwards 0: from weir';
    ok !$got->{seen}, 'not from the origin';
    like $got->{body}, qr{^TRACE http://\S+/x HTTP/1.1\r\n}, 'TRACE echoes';
    like $got->{body}, qr/X-Mark: 77/, 'with its fields';
    unlike $got->{body}, qr/secret/, 'but no credentials';
    $got = never_seen($w, "TRACE http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n"
            . "Max-Forwards: 0\r\nX-Long: " . 'x' x 20000 . "\r\nX-Mark: 78\r\n"
            . "Connection: close\r\n\r\n");
    like $got->{body}, qr/X-Long: x{20000}\r\nX-Mark: 78\r\n/,
        'all of them, however long';
    for my $method (qw(TRACE OPTIONS)) {
        my ($seen) = through($w, "$method http://ORIGIN/x HTTP/1.1\r\n"
                . "Host: ORIGIN\r\nMax-Forwards: 7\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        is field($seen, 'max-forwards'), 6, "$method: one forward less";
    }
    my ($seen) = through($w, "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n"
            . "Max-Forwards: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    is $seen->{method}, 'GET', 'of other methods it does not matter';
}

# ---- curl
{
    my $o = origin(sub ($c) {
        while (my $r = $c->get_request) {
            my $body = "$r->{method} $r->{target} " . length $r->{body};
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: " . length($body)
                    . "\r\n\r\n$body");
        }
    });
    my $url = 'http://' . $o->addr;
    is curl($w, "$url/a")->{out}, 'GET /a 0', 'curl, HTTP/1.1';
    is curl($w, '-0', "$url/b")->{out}, 'GET /b 0', 'curl, HTTP/1.0';
    my $two = curl($w, "$url/1", "$url/2");
    is $two->{out}, 'GET /1 0GET /2 0', 'curl, two on one connection';
    my $file = spew(scratch('up'), 'x' x 300_000);
    is curl($w, '-T', $file, "$url/up")->{out}, 'PUT /up 300000', 'curl -T';
    is curl($w, '-T', '-', '-H', 'Expect:', "$url/up")->{out}, 'PUT /up 0',
        'curl -T - sends chunks';
    is curl($w, '-0', '-T', $file, "$url/up")->{out}, 'PUT /up 300000',
        'curl -0 -T';
    is curl($w, '-d', 'a=b', "$url/p")->{out}, 'POST /p 3', 'curl -d';
    is curl($w, '-F', "f=\@$file", "$url/f")->{code}, 200,
        'curl -F with 100-continue';
    like curl($w, '-I', "$url/h")->{out}, qr/^HTTP\/1.1 200 OK/, 'curl -I';
}

$w->stop;
done_testing;
