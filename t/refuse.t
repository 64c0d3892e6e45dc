#!/usr/bin/perl
# What weir does not pass on: requests an origin must never see, and answers
# a client must never see.  RFC 9112 section 11 names the reasons.
use v5.36;
use Test::More;
use Weir;

my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.head_bytes=16384',
    'proxy.target_bytes=8000', 'proxy.fields=100' ]);

my $get  = "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n";
my $post = "POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n";
my $body = "5\r\nhello\r\n0\r\n\r\n";

sub refused($name, $text, @status)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $got = never_seen($w, $text);
    ok scalar(grep { $got->{status} == $_ } @status),
        "$name: " . join(' or ', @status)
        or diag "got $got->{status}: $got->{head}$got->{body}";
    ok !$got->{seen}, "$name: no origin sees it";
    is $got->{rest}, '', "$name: one answer";
    ok $got->{complete} && $got->{closed} ne 'open', "$name: and the end";
}

# ---- two lengths, or none that can be trusted
refused('length and chunks',
    "${post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n$body", 400);
refused('chunks and length',
    "${post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n$body", 400);
refused('chunks and length 0',
    "${post}Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n$body", 400);
refused('two lengths',
    "${post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400);
refused('two lengths in a list', "${post}Content-Length: 5, 6\r\n\r\nhello!",
    400);
refused("length \"$_\"", "${post}Content-Length: $_\r\n\r\nhello", 400)
    for '+5', '-5', '0x5', '5a', '5 5', '', '5;', '5.0', '"5"', ',5',
    '18446744073709551616', '99999999999999999999999';
refused("coding \"$_\"", "${post}Transfer-Encoding: $_\r\n\r\n$body", 400, 501)
    for 'gzip', 'gzip, chunked', 'chunked, gzip', 'chunked, chunked',
    'identity', 'xchunked', 'chunkedx', 'chunked;q=1', '"chunked"', '',
    'chunked, identity', 'x chunked', 'chu nked';
refused('two coding fields', "${post}Transfer-Encoding: chunked\r\n"
        . "Transfer-Encoding: chunked\r\n\r\n$body", 400, 501);
refused('two coding fields, the second unknown',
    "${post}Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n$body",
    400, 501);
refused('chunks on HTTP/1.0', "POST http://ORIGIN/ HTTP/1.0\r\n"
        . "Host: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n$body", 400, 501);

# ---- lines
refused('bare LF ends the request line',
    "GET http://ORIGIN/ HTTP/1.1\nHost: ORIGIN\r\n\r\n", 400);
refused('bare LF ends a field', "${get}X: y\nZ: z\r\n\r\n", 400);
refused('bare LF ends the head', "${get}X: y\r\n\n", 400);
refused('bare CR in a value', "${get}X: a\rb\r\n\r\n", 400);
refused('bare CR before the CRLF', "${get}X: a\r\r\n\r\n", 400);
refused('bare CR in the request line',
    "GET http://ORIGIN/\rx HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400);
refused('NUL in a value', "${get}X: a\0b\r\n\r\n", 400);
refused('NUL in a name', "${get}X\0: a\r\n\r\n", 400);
refused('NUL in the target',
    "GET http://ORIGIN/\0 HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400);
refused('folded field', "${get}X: a\r\n b\r\n\r\n", 400);
refused('folded field, tab', "${get}X: a\r\n\tb\r\n\r\n", 400);
refused('space before the first field',
    "GET http://ORIGIN/ HTTP/1.1\r\n Host: ORIGIN\r\n\r\n", 400);
refused('space before the colon', "${get}X : a\r\n\r\n", 400);
refused('tab before the colon', "${get}X\t: a\r\n\r\n", 400);
refused('length with space before the colon',
    "${post}Content-Length : 5\r\n\r\nhello", 400);
refused('no colon', "${get}X\r\n\r\n", 400);
refused('empty name', "${get}: a\r\n\r\n", 400);
refused("name \"$_\"", "${get}$_: a\r\n\r\n", 400)
    for 'a b', 'a(b)', 'a@b', "\xc3\xa4", 'a/b', '"a"', 'a=b', '{a}';
refused(sprintf('control %#x in a value', ord), "${get}X: a$_\r\n\r\n", 400)
    for "\x01", "\x0b", "\x1f", "\x7f";

# ---- request line
refused("method \"$_\"", "$_ http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    400, 501)
    for '', 'G@T', 'GE(T', "GET\t", 'GET/', "G\xc3\x8bT";
refused('two spaces', "GET  http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    400);
refused('space at the end',
    "GET http://ORIGIN/ HTTP/1.1 \r\nHost: ORIGIN\r\n\r\n", 400, 505);
refused('space in the target',
    "GET http://ORIGIN/a b HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400);
refused('tab in the request line',
    "GET\thttp://ORIGIN/\tHTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400);
refused('no version (HTTP/0.9)', "GET http://ORIGIN/\r\n\r\n", 400, 505);
refused("target \"$_\"", "GET $_ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400)
    for 'http://', 'http:///', 'http:/ORIGIN/', 'http:ORIGIN', 'foo',
    'http://ORIGIN:x/', 'http://127.0.0.1:99999/', 'http://127.0.0.1:-1/',
    'http://[::1/', 'http://::1/', 'http://a b/', 'http://:80/', '*',
    'http://[nonsense]/', 'http://a%zz/';
refused('control in the target',
    "GET http://ORIGIN/\x01 HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400);
refused('a scheme that is not HTTP',
    "GET ftp://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400, 501);
refused("userinfo \"$_\"", "GET http://$_\@ORIGIN/ HTTP/1.1\r\n"
        . "Host: ORIGIN\r\n\r\n", 400)
    for 'user', 'user:password', ':', '';
refused('authority-form without CONNECT',
    "GET ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 400);
refused("CONNECT to \"$_\"", "CONNECT $_ HTTP/1.1\r\nHost: x\r\n\r\n", 400)
    for 'http://ORIGIN/', 'user@ORIGIN', '127.0.0.1', '127.0.0.1:',
    '127.0.0.1:0', '127.0.0.1:65536', '127.0.0.1:x', ':80', '/', '*',
    '[::1', '::1:80', 'a b:80', '[::1]', 'ORIGIN/path';

# ---- Host, RFC 9112 section 3.2
refused('no Host', "GET http://ORIGIN/ HTTP/1.1\r\n\r\n", 400);
refused('two Hosts', "${get}Host: other\r\n\r\n", 400);
refused('the same Host twice', "${get}Host: ORIGIN\r\n\r\n", 400);
refused("Host \"$_\"", "GET http://ORIGIN/ HTTP/1.1\r\nHost: $_\r\n\r\n", 400)
    for 'a b', 'user@ORIGIN', 'a/b', 'a,b', 'a:b:c', "a\x80";

# ---- versions
refused("version $_", "GET http://ORIGIN/ $_\r\nHost: ORIGIN\r\n\r\n", 505)
    for 'HTTP/2.0', 'HTTP/3.0', 'HTTP/0.9';
refused("version $_", "GET http://ORIGIN/ $_\r\nHost: ORIGIN\r\n\r\n",
    400, 505)
    for 'HTTP/1.10', 'HTTP/11', 'http/1.1', 'HTTP/1', 'HTTP/1.', 'HTTP/a.b',
    'HTTP /1.1', 'HTTP/ 1.1', 'HTTPS/1.1', 'HTTP/01.1', 'SIP/2.0';

# ---- too much
refused('long head', "${get}X: " . 'a' x 20000 . "\r\n\r\n", 431);
refused('long head that does not end', "${get}X: " . 'a' x 40000, 431);
refused('many fields', $get . "X: y\r\n" x 150 . "\r\n", 431);
refused('long target', 'GET http://ORIGIN/' . 'a' x 9000
        . " HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", 414);
refused('long target that does not end', 'GET http://ORIGIN/' . 'a' x 40000,
    414);
{
    my ($seen, $got) = through($w, "${get}X: " . 'a' x 10000 . "\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    is $got->{status}, 200, 'a head below the limit passes';
    is length field($seen, 'x'), 10000, 'whole';
}

# ---- chunks: the head may have gone, the end must not
for my $case (
    [ 'size "g"',         "g\r\n" ],
    [ 'size "-1"',        "-1\r\n" ],
    [ 'size "0x5"',       "0x5\r\nhello\r\n0\r\n\r\n" ],
    [ 'no size',          "\r\nhello\r\n0\r\n\r\n" ],
    [ 'space before',     " 5\r\nhello\r\n0\r\n\r\n" ],
    [ 'overflow',         "10000000000000005\r\nhello\r\n0\r\n\r\n" ],
    [ 'many digits',      '0' x 5000 . "5\r\nhello\r\n0\r\n\r\n" ],
    [ 'bare LF',          "5\nhello\r\n0\r\n\r\n" ],
    [ 'bare CR',          "5\rhello\r\n0\r\n\r\n" ],
    [ 'data too long',    "5\r\nhello!\r\n0\r\n\r\n" ],
    [ 'data too short',   "5\r\nhell\r\n0\r\n\r\n" ],
    [ 'LF after data',    "5\r\nhello\n0\r\n\r\n" ],
    [ 'extension with CR', "5;a\rb\r\nhello\r\n0\r\n\r\n" ],
    [ 'extension with LF', "5;a\nhello\r\n0\r\n\r\n" ],
    [ 'extension with NUL', "5;a\0\r\nhello\r\n0\r\n\r\n" ],
    [ 'endless extension', '5;' . 'a' x 70000 . "\r\nhello\r\n0\r\n\r\n" ],
    [ 'trailer with space', "5\r\nhello\r\n0\r\nX : y\r\n\r\n" ],
    [ 'trailer folded',    "5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n" ],
    [ 'trailer with bare LF', "5\r\nhello\r\n0\r\nX: y\n\r\n\r\n" ],
    [ 'trailer without colon', "5\r\nhello\r\n0\r\nX\r\n\r\n" ],
    [ 'LF ends the trailers', "5\r\nhello\r\n0\r\n\n" ],
) {
    my ($name, $chunks) = @$case;
    my $l = listener();
    my $c = $w->client;
    $c->put(("${post}Transfer-Encoding: chunked\r\n\r\n$chunks")
        =~ s/ORIGIN/$l->addr/ger);
    my $got = $c->get_answer;
    ok $got->{status} == 400 || $got->{status} == 431,
        "chunks, $name: refused" or diag $got->{head}, $got->{body};
    is eval { $c->get_eof } // $@, '', "chunks, $name: one answer";
    isnt $c->how, 'open', "chunks, $name: and the end";
    if ($l->waiting) {
        my $seen = $l->accept->get_request;
        ok !defined $seen || !$seen->{complete},
            "chunks, $name: no origin sees a whole request";
    } else {
        pass("chunks, $name: no origin sees it");
    }
}

# ---- answers: 502, whatever is wrong
for my $case (
    [ 'no HTTP',          "SSH-2.0-OpenSSH_9.2\r\n\r\n" ],
    [ 'status 20',        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'status 2000',      "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'status abc',       "HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'status 099',       "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'version 2.0',      "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'version http',     "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'two spaces',       "HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'bare LF',          "HTTP/1.1 200 OK\nContent-Length: 0\n\n" ],
    [ 'bare LF in a field', "HTTP/1.1 200 OK\r\nX: y\nContent-Length: 0\r\n\r\n" ],
    [ 'bare CR',          "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n" ],
    [ 'CR in the reason', "HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n" ],
    [ 'NUL',              "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n" ],
    [ 'folded',           "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n" ],
    [ 'space before colon', "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n" ],
    [ 'empty name',       "HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 0\r\n\r\n" ],
    [ 'no colon',         "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n" ],
    [ 'length and chunks', "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n$body" ],
    [ 'two lengths',      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!" ],
    [ 'length +5',        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello" ],
    [ 'length -5',        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello" ],
    [ 'empty length',     "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello" ],
    [ 'length overflow',  "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551617\r\n\r\nhello" ],
    [ 'unknown coding',   "HTTP/1.1 200 OK\r\nTransfer-Encoding: cow\r\n\r\nhello" ],
    [ 'gzip, chunked',    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n$body" ],
    [ 'chunked twice',    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n$body" ],
    [ 'chunks on 1.0',    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n$body" ],
    [ 'long head',        "HTTP/1.1 200 OK\r\nX: " . 'a' x 40000 . "\r\n\r\n" ],
    [ 'many fields',      "HTTP/1.1 200 OK\r\n" . "X: y\r\n" x 200 . "\r\n" ],
    [ '101 nobody asked for', "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: cow\r\n\r\n" ],
    [ 'half a head',      "HTTP/1.1 200 OK\r\nContent-Le" ],
    [ 'nothing',          '' ],
) {
    my ($name, $answer) = @$case;
    my (undef, $got, $c, $s) = through($w, "$get\r\n", $answer, last => 1);
    is $got->{status}, 502, "answer, $name: 502" or diag $got->{head};
    ok $got->{complete}, "answer, $name: complete";
    like field($got, 'proxy-status'), qr/error=/, "answer, $name: Proxy-Status";
    my (undef, $next) = through($w, "$get\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ($c->how eq 'open' && ($got->{head} !~ /^connection: close/mi)
            ? (client => $c) : ()));
    is $next->{body}, 'ok', "answer, $name: then the next one";
}

$w->stop;
done_testing;
