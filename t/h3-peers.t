#!/usr/bin/perl
# The tests' own HTTP/3, with itself and with what others have written: what it
# says of weir elsewhere is worth as much as what it says here.
use v5.36;
use lib 't/lib';
use Test::More;
use Ways;
use Weir;
use Weir::H3;

my $ca = certs()->{ca}{cert};

sub get($authority, $path) { return Weir::H2::get($authority, $path, 'GET', 'https') }

{ # itself
    my $l = Weir::H3->listener;
    my $c = Weir::H3->client(port => $l->port, sni => 'good.test',
        wire => { ca => $ca });
    ok $c->{up}, 'a handshake';
    my $s = $l->accept;
    is $s->{sni}, 'good.test', 'with its name';
    my $id = $c->request([ get('x.test', '/a'), 'x-one', 1 ], end => 0);
    my $r = $s->next_request;
    is $r->{head}{':path'}, '/a', 'a request';
    $c->data($id, 'hello', 1);
    $s->until(sub { $r->{end} });
    is $r->{body}, 'hello', 'its content';
    $s->reply($id, 103, [ 'link', '</a>' ], undef, open => 1);
    $s->reply($id, 200, [], 'x' x 100_000, open => 1);
    $s->trailers($id, 'x-sum', 1);
    my $got = $c->answer($id);
    is scalar $got->{heads}->@*, 2, 'two answers';
    is length $got->{body}, 100_000, 'content';
    is_deeply $got->{trailers}, [ [ 'x-sum', 1 ] ], 'trailers';
    $c->datagram($id, 'a datagram');
    $s->until(sub { $s->{datagrams}->@* });
    is_deeply $s->{datagrams}, [ [ 0, 'a datagram' ] ], 'a datagram';
    $id = $c->request([ get('x.test', '/b') ], end => 0);
    $s->next_request;
    $s->stop_stream($id, 'NO_ERROR');
    $s->reset_stream($id, 'INTERNAL_ERROR');
    $c->until(sub { $c->stream($id)->{closed} });
    is $c->stream($id)->{stopped}, 'NO_ERROR', 'STOP_SENDING';
    is $c->stream($id)->{reset}, 'INTERNAL_ERROR', 'RESET_STREAM';
    for my $what ('migrate', 'rebind', 'update') {
        $c->tell($what);
        $id = $c->request([ get('x.test', "/$what") ]);
        is $s->next_request->{head}{':path'}, "/$what", $what;
        $s->reply($id, 200, [], 'ok');
        is $c->answer($id)->{body}, 'ok', 'and back';
    }
    $s->close('EXCESSIVE_LOAD');
    is $c->ending, 'application EXCESSIVE_LOAD', 'an end with its code';
    $c = Weir::H3->client(port => $l->port, sni => 'bad.test',
        wire => { ca => $ca });
    is $c->{gone}, 'error', 'a certificate for another name';
    $c = Weir::H3->client(port => $l->port, wire => { idle_ms => 200 });
    is $c->ending, 'idle 0', 'idle';
    my $file = scratch('session');
    for my $n (0, 1) {
        $c = Weir::H3->client(port => $l->port, sni => 'good.test',
            wire => { session => $file });
        is $c->{resumed}, $n, $n ? 'is taken up' : 'a session';
        $c->until(sub { $c->{ticket} });
        $c->close;
    }
}
my $root = scratch('root', 1);
chmod 0755, $root;
spew("$root/small", 'hello');
spew("$root/big", join '', map { pack 'N', $_ } 1 .. 1_000_000);
for my $p (gtlsserver($root), caddy($root)) {
    my $c = Weir::H3->client(port => $p->{port}, sni => 'good.test',
        wire => { ca => $ca });
    ok $c->{up}, "$p->{name}: a handshake";
    my $id = $c->request([ get("good.test:$p->{port}", '/small') ]);
    my $s = $c->answer($id);
    is $s->{status}, 200, 'an answer';
    is $s->{body}, 'hello', 'its content';
    $id = $c->request([ get("good.test:$p->{port}", '/big') ]);
    ok $c->answer($id)->{body} eq slurp("$root/big"), '4 MB';
    ok $c->{settings}, 'SETTINGS';
}
{ # gtlsclient
    my $l = Weir::H3->listener;
    my $p = start_process([ 'gtlsclient', '-q', '--no-quic-dump',
        '--no-http-dump', '--exit-on-all-streams-close', '127.0.0.1',
        $l->port, 'https://x.test/1', 'https://x.test/2' ]);
    my $s = $l->accept;
    for my $n (1, 2) {
        my $r = $s->next_request;
        is $r->{head}{':authority'}, 'x.test', "gtlsclient: request $n";
        $s->reply($r->{id}, 200, [], 'ok');
    }
    is reap($p), 0, 'it has ended';
    is $s->ending, 'application NO_ERROR', 'with a word';
}
done_testing;
