#!/usr/bin/perl
# A storm: a dozen HTTP/3 clients that do whatever comes to their mind, all at
# once, some 2000 steps of it.  What each of them gets is not looked at; weir has
# to survive it, to serve the next one, and to have given everything back.
# SEED=number repeats what a run has announced, STEPS makes it longer.
use v5.36;
use lib 't/lib';
use Test::More;
use Time::HiRes qw(time);
use Ways;
use Weir;
use Weir::H3;

my $seed = $ENV{SEED} // int rand 1_000_000;
srand $seed;
note "seed $seed";

my $root = scratch('root', 1);
chmod 0755, $root;
spew("$root/small", 'ok');
spew("$root/big", 'z' x 3_000_000);
my ($caddy, $gtls) = (caddy($root, name => 'c.good.test'), gtlsserver($root));
my $plain = origin(sub ($c) {
    while (my $r = $c->get_request) {
        my $body = $r->{target} =~ /big/ ? 'y' x 3_000_000 : 'ok';
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: " . length($body)
            . "\r\n\r\n$body") or return;
    }
});
my $echo = origin(sub ($c) {
    while ((my $some = $c->get_some) ne '') {
        $c->put($some) or return;
    }
});
my $w = Weir->start(set => [
    "upstream.upstream_ca=" . certs()->{ca}{cert}, 'resolve.c.good.test=127.0.0.1',
    'resolve.g.good.test=127.0.0.1', 'upstream.http3=g.good.test',
    'proxy.idle_s=3', 'http3.idle_s=3', 'http2.stall_s=2',
    'http2.resets=1000000' ]);
my @targets = map {
    my $at = $_;
    map { [ @$at, $_ ] } '/small', '/big'
} [ 'http', $plain->addr ], [ 'https', "c.good.test:$caddy->{port}" ],
    [ 'https', "g.good.test:$gtls->{port}" ],
    [ 'http', '127.0.0.1:' . closed_port() ];

my (@clients, %n);

sub one_of(@list) { return $list[ rand @list ] }

# Streams of a client that are not over.
sub open_of($c)
{
    return grep { !($_->{id} & 2) && !$_->{closed} } values $c->{streams}->%*;
}

sub begin($c)
{
    my $id = $c->{next};
    my ($scheme, $authority, $path) = one_of(@targets)->@*;
    my $kind = one_of(qw(GET GET GET POST CONNECT malformed));
    my @fields = $kind eq 'CONNECT'
        ? (':method', 'CONNECT', ':authority', $echo->addr)
        : Weir::H2::get($authority, $path,
            $kind eq 'malformed' ? 'GET' : $kind, $scheme);
    push @fields, 'Bad', 1 if $kind eq 'malformed';
    my $ends = $kind =~ /^[Gm]/;
    $c->{next} += 4; # whether it was allowed is not waited for
    Weir::H3::command("open $c->{id} bidi");
    $c->stream($id)->{sink} = sub ($bytes) { $n{bytes} += length $bytes };
    $c->put($id, 'HEADERS', Weir::H3::qpack(@fields), $ends);
    $c->data($id, 'u' x rand 100_000, rand() < 0.5) if !$ends;
}

sub with_stream($c, $do)
{
    my $s = one_of(open_of($c)) // return;
    $do->($s->{id});
}

sub leave($c, $how)
{
    $how eq 'close' ? $c->close : $c->tell('abandon');
    @clients = grep { $_ != $c } @clients;
}

# What may come to a client's mind, the more often the larger the number.
my @deeds = map { my ($n, $do) = @$_; ($do) x $n } (
    [ 45, \&begin ],
    [ 8, sub ($c) { with_stream($c, sub ($id) { $c->reset_stream($id, 'REQUEST_CANCELLED') }) } ],
    [ 8, sub ($c) { with_stream($c, sub ($id) { $c->stop_stream($id, 'REQUEST_CANCELLED') }) } ],
    [ 6, sub ($c) { with_stream($c, sub ($id) { $c->data($id, 'more' x 1000, rand() < 0.5) }) } ],
    [ 6, sub ($c) { with_stream($c, sub ($id) { $c->tell('hold', $id) }) } ],
    [ 4, sub ($c) { with_stream($c, sub ($id) { $c->tell('resume', $id) }) } ],
    [ 2, sub ($c) { $c->datagram(4 * int rand 10, 'x' x rand 1000) } ],
    [ 1, sub ($c) { $c->tell('update') } ],
    [ 1, sub ($c) { $c->tell(one_of(qw(rebind migrate))) } ],
    [ 2, sub ($c) { leave($c, 'abandon') } ],
    [ 1, sub ($c) { leave($c, 'close') } ],
);

for (1 .. $ENV{STEPS} // 2000) {
    my $events = 0; # those that are there, but not for ever
    $events++ while @clients && $events < 300
        && Weir::H3::pump($events ? 0 : time + 0.005);
    $n{$_}++ for map { "gone $_->{gone} $_->{code}" } grep { $_->{gone} } @clients;
    @clients = grep { !$_->{gone} } @clients;
    if (@clients < 12 && rand() < 0.2) {
        push @clients, Weir::H3->client(port => $w->port, wait => 0,
            wire => rand() < 0.3 ? { window => 100_000, stream_window => 30_000 } : {});
        $n{clients}++;
        next;
    }
    my $c = one_of(grep { $_->{up} } @clients) // next;
    my $do = one_of(@deeds);
    next if $do == \&begin && open_of($c) > 30;
    $do->($c);
    $n{deeds}++;
    $w->signal('HUP') if rand() < 0.001;
}
leave($_, 'abandon') for @clients;
note join ', ', map { "$n{$_} $_" } sort keys %n;

my $c = Weir::H3->client(port => $w->port, sni => 'localhost');
my $s = $c->answer($c->request([ Weir::H2::get($plain->addr, '/small') ]));
is $s->{body}, 'ok', 'after the storm: the next one is served' or diag "seed $seed";
$c->close;
# Idle connections to origins stay for a while, and so do a few spare pipes.
ok eval { wait_for('descriptors', sub { $w->n_fds < $w->{fds} + 60 }, 60) },
    'what clients held is given back' or diag "seed $seed, ", $w->n_fds;
$w->stop;
done_testing;
