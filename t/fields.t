#!/usr/bin/perl
# Which fields pass, which stay, which are made.  RFC 9110 sections 5.3, 7.6.
use v5.36;
use Test::More;
use Weir;

my $w   = Weir->start(set => [ 'intercept.enable=no', 'proxy.via=tester' ]);
my $ok  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
my $get = "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n";

# What is left of a message's fields without those that weir writes itself.
sub plain($message)
{
    return [ grep { $_->[0] !~ /^(?:host|via|connection|content-length)$/i }
            $message->{fields}->@* ];
}

# ---- end-to-end fields stay as they are
{
    my @f = ([ 'X-One', '1' ], [ 'accept', '*/*' ], [ 'x-oNE', '2' ],
        [ 'X-Empty', '' ], [ 'COOKIE', 'a=b; c=d' ], [ 'X-One', '3, 4' ],
        [ 'cookie', 'e=f' ], [ 'Authorization', 'Basic Zm9vOmJhcg==' ],
        [ 'X-Text', "caf\xc3\xa9 \"quoted\\\" \t text\"" ],
        [ 'Accept-Encoding', 'gzip,br' ], [ '!#$%&\'*+-.^_`|~0', 'token' ]);
    my $text = join '', map { "$_->[0]: $_->[1]\r\n" } @f;
    my ($seen, $got) = through($w, "$get$text\r\n",
        "HTTP/1.1 200 OK\r\n${text}Content-Length: 2\r\n\r\nok");
    is_deeply plain($seen), \@f, 'request: order, spelling, duplicates';
    is_deeply plain($got), \@f, 'answer: order, spelling, duplicates';
}
{
    my ($seen) = through($w, "${get}X-A:  \t a b \t \r\n\r\n", $ok);
    is field($seen, 'x-a'), 'a b', 'blanks around a value do not count';
}
{
    my ($seen, $got) = through($w, "$get\r\n",
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nDate: then\r\nServer: s\r\n"
            . "Set-Cookie: c=d\r\nContent-Length: 2\r\n\r\nok");
    is_deeply [ fields($got, 'set-cookie') ], [ 'a=b', 'c=d' ],
        'cookies are not joined';
    is field($got, 'date'), 'then', 'Date is the origin\'s';
    is field($got, 'server'), 's', 'Server too';
}

# ---- hop-by-hop fields, RFC 9110 section 7.6.1
my $hops = "Connection: keep-alive, X-Mine ,x-other\r\nKeep-Alive: timeout=5\r\n"
    . "Proxy-Connection: keep-alive\r\nX-Mine: 1\r\nX-OTHER: 2\r\n"
    . "X-Stays: 3\r\nConnection: X-More\r\nx-more: 4\r\n";
{
    my ($seen, $got) = through($w,
        "${get}${hops}Proxy-Authorization: Basic c2VjcmV0\r\nTE: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\n${hops}Proxy-Authenticate: Basic\r\n"
            . "Content-Length: 2\r\n\r\nok");
    for my $side ([ request => $seen ], [ answer => $got ]) {
        my ($name, $m) = @$side;
        is field($m, $_), undef, "$name: no $_"
            for qw(Keep-Alive Proxy-Connection X-Mine X-Other X-More);
        is field($m, 'x-stays'), 3, "$name: what nobody names stays";
        unlike join(',', fields($m, 'connection')), qr/X-M/i,
            "$name: Connection is not copied";
    }
    is field($seen, 'proxy-authorization'), undef, 'no Proxy-Authorization';
    is field($seen, 'te'), undef, 'no TE but trailers';
}
{ # a client that names what it must not lose
    my ($seen) = through($w, "POST http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n"
            . "Connection: Host, Content-Length, Cookie\r\nCookie: a=b\r\n"
            . "Content-Length: 2\r\n\r\nhi", $ok);
    is $seen->{body}, 'hi', 'the length stays even if Connection names it';
    ok field($seen, 'host'), 'Host too';
    is field($seen, 'cookie'), undef, 'a field it names goes';
}
{
    my ($seen) = through($w, "${get}Connection: upgrade, HTTP2-Settings\r\n"
            . "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", $ok);
    is field($seen, 'http2-settings'), undef, 'no HTTP2-Settings';
    unlike field($seen, 'upgrade') // '', qr/h2c/, 'nor an upgrade to h2c';
}
{
    my ($seen) = through($w, "${get}Upgrade: websocket\r\n\r\n", $ok);
    is field($seen, 'upgrade'), undef, 'no Upgrade that Connection lacks';
}

# ---- Host, RFC 9112 section 3.2.2
{
    my $l = listener();
    my $c = $w->client;
    $c->put("GET http://${\ $l->addr}/x HTTP/1.1\r\nA: 1\r\n"
            . "Host: something.else\r\nB: 2\r\n\r\n");
    my $seen = $l->accept->get_request;
    is_deeply [ fields($seen, 'host') ], [ $l->addr ],
        'Host is the target\'s, once';
}
{
    my $l  = listener();
    my $w2 = Weir->start(set => [ 'intercept.enable=no',
        'resolve.plain.test=127.0.0.1:' . $l->port ]);
    my $c = $w2->client;
    $c->put("GET http://Plain.TEST:80/x HTTP/1.1\r\nHost: plain.test\r\n\r\n");
    my $seen = $l->accept->get_request;
    like field($seen, 'host'), qr/^plain\.test(?::80)?$/i,
        'Host names the target, not where it resolves to';
    $w2->stop;
}

# ---- Via, RFC 9110 section 7.6.3
{
    my ($seen, $got) = through($w,
        "${get}Via: 1.0 fred, 1.1 p.example\r\n\r\n",
        "HTTP/1.0 200 OK\r\nVia: 1.1 far\r\nContent-Length: 2\r\n\r\nok",
        last => 1);
    is join(', ', fields($seen, 'via')), '1.0 fred, 1.1 p.example, 1.1 tester',
        'request: our entry comes last';
    is join(', ', fields($got, 'via')), '1.1 far, 1.0 tester',
        'answer: with the version it came in';
    ($seen) = through($w, "GET http://ORIGIN/ HTTP/1.0\r\n\r\n", $ok);
    is field($seen, 'via'), '1.0 tester', 'a 1.0 request says 1.0';
}

# ---- Transfer-Encoding and Content-Length are made anew
{
    # RFC 9112 section 6.3: the same length twice may be refused, or made one
    for my $twice ('5, 5', "5\r\nContent-Length: 5") {
        my $l = listener();
        my $c = $w->client;
        $c->put("POST http://${\ $l->addr}/x HTTP/1.1\r\nHost: x\r\n"
                . "Content-Length: $twice\r\n\r\nhello");
        if (Weir::first_of($l, $c) == $l) {
            is_deeply [ fields($l->accept->get_request, 'content-length') ],
                [5], 'one length said twice goes on once';
        } else {
            is $c->get_answer->{status}, 400, 'or is refused';
        }
    }
}

# ---- what weir adds of its own besides
{
    my ($seen, $got) = through($w, "$get\r\n", $ok);
    my %known = map { $_ => 1 } qw(host via connection content-length);
    is_deeply [ grep { !$known{ lc $_->[0] } } $seen->{fields}->@* ], [],
        'a request gets no field but Via';
    is_deeply [ grep { !$known{ lc $_->[0] } } $got->{fields}->@* ], [],
        'nor does an answer';
}

$w->stop;
done_testing;
