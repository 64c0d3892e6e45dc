#!/usr/bin/perl
# Alt-Svc: what a client is told of other ways to an origin, which would lead
# it around weir, and what an origin is told of the way that was taken.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H2;

my $certs = certs();
my $alt   = 'h3=":443"; ma=86400, h2="alt.good.test:8443"';

# Says where else it is, in an interim answer too, and tells what it heard.
sub say_alternatives($c)
{
    while (my $r = $c->get_request) {
        my $used = field($r, 'alt-used') // 'none';
        $c->put("HTTP/1.1 103 Early Hints\r\nAlt-Svc: $alt\r\n"
                . "Link: </a>\r\n\r\n"
                . "HTTP/1.1 200 OK\r\nAlt-Svc: $alt\r\nX-Kept: 1\r\n"
                . "ALT-SVC: clear\r\nX-Used: $used\r\n"
                . "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
                . "0\r\nAlt-Svc: $alt\r\nX-Last: 1\r\n\r\n");
    }
}

# By its own frame, of the connection and of the stream (RFC 7838 section 4).
sub h2_alternatives($c)
{
    my $o = Weir::H2->server($c);
    while (my $s = $o->next_request) {
        my $origin = 'https://two.good.test';
        $o->put(10, 0, 0, pack('n', length $origin) . $origin . $alt);
        $o->put(10, 0, $s->{id}, pack('n', 0) . $alt);
        $o->reply($s->{id}, 200, [ 'alt-svc', $alt, 'x-kept', 1 ], 'ok');
    }
}

my $o  = origin(\&say_alternatives, tls => { $certs->{good}->%*,
    alpn => ['http/1.1'] });
my $h2 = origin(\&h2_alternatives, tls => { $certs->{good}->%*,
    alpn => ['h2'] });
my $plain = origin(\&say_alternatives);
my @set = ('resolve.good.test=127.0.0.1:' . $o->port,
    'resolve.two.good.test=127.0.0.1:' . $h2->port,
    'resolve.plain.test=127.0.0.1:' . $plain->port,
    "upstream.upstream_ca=$certs->{ca}{cert}");

sub inside($w, $target, @alpn)
{
    my $c = $w->client;
    $c->connect($target);
    $c->tls_client(sni => $target =~ s/:\d+//r, ca => $w->ca,
        alpn => [@alpn]) or die "TLS: $c->{error}\n";
    return $c;
}

sub all_of($got) { return join '|', fields($got, 'alt-svc') }

my @used = ('Host: good.test', 'Alt-Used: alt.good.test',
    'Connection: TE', 'TE: trailers');

{
    my $w = Weir->start(set => \@set);
    my $c = inside($w, 'good.test:443', 'http/1.1');
    $c->put(request('GET', '/', \@used));
    my $early = $c->get_answer;
    is "$early->{status} " . field($early, 'link'), '103 </a>',
        'intercepted: an interim answer';
    is all_of($early), '', 'without Alt-Svc';
    my $got = $c->get_answer;
    is "$got->{status} $got->{body}", '200 ok', 'the answer';
    is all_of($got), '', 'without Alt-Svc, however it is spelled';
    is field($got, 'x-kept'), 1, 'all else stays';
    is lc join('|', map { "@$_" } $got->{trailers}->@*), 'x-last 1',
        'nor behind the content';
    is field($got, 'x-used'), 'none', 'Alt-Used was for the way to weir';

    $c = Weir::H2->client(inside($w, 'two.good.test:443', 'h2'));
    my $id = $c->request([ Weir::H2::get('two.good.test', '/', 'GET',
        'https') ]);
    my $s = $c->answer($id);
    is "$s->{status} $s->{body}", '200 ok', 'HTTP/2: the answer';
    is join('|', map { $_->[0] } grep { $_->[0] =~ /alt-svc|x-kept/ }
            $s->{fields}->@*), 'x-kept', 'without Alt-Svc';
    ok $c->alive, 'goes on';
    is $c->{n}{10}, undef, 'no ALTSVC frame has come';

    $c   = $w->client;
    $got = $c->put(request('GET', 'https://good.test/', \@used))
        && ($c->get_answer, $c->get_answer)[1];
    is all_of($got), '', 'https asked of the proxy: without Alt-Svc';

    $c   = $w->client;
    $got = $c->put(request('GET', 'http://plain.test/',
        [ 'Host: plain.test', 'Alt-Used: a.test' ]))
        && ($c->get_answer, $c->get_answer)[1];
    is all_of($got), "$alt|clear", 'http is not intercepted: as it is';
    is field($got, 'x-used'), 'a.test', 'so is Alt-Used';
    $w->stop;
}
{
    my $w = Weir->start(set => [ @set, 'intercept.alt_svc=keep' ]);
    my $c = inside($w, 'good.test:443', 'http/1.1');
    $c->put(request('GET', '/', \@used));
    is all_of($c->get_answer), $alt, 'keep: in the interim answer';
    my $got = $c->get_answer;
    is all_of($got), "$alt|clear", 'and in the answer';
    is field($got, 'x-used'), 'alt.good.test', 'so is Alt-Used';
    $w->stop;
}
{
    my $r = weir_run([ '--set', 'intercept.alt_svc=no', '--check' ]);
    isnt $r->{exit}, 0, 'another word';
    like $r->{err}, qr/\[intercept\] alt_svc: .*allowed: strip\|keep/,
        'is refused';
}
done_testing;
