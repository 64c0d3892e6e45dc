#!/usr/bin/perl
# After 10 000 connections of every kind nothing is left of them.
use v5.36;
use Test::More;
use Weir;

use constant { CONNECTIONS => 10_000, CLIENTS => 4 };

my $certs = certs();
my $plain = origin(sub ($c) {
    while (my $r = $c->get_request) {
        return $c->reset if $r->{target} eq '/reset';
        return $c->put("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut")
            if $r->{target} eq '/cut';
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
});
my $raw = origin(sub ($c) { $c->put($c->get_some) });
my $tls = origin(sub ($c) {
    $c->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        while $c->get_request;
}, tls => $certs->{good});
my $dead = closed_port();
my $w = Weir->start(set => [ 'resolve.good.test=127.0.0.1:' . $tls->port,
    "upstream.upstream_ca=$certs->{ca}{cert}", 'upstream.reuse_s=2',
    'tunnel.half_closed_s=2', 'proxy.idle_s=5',
    'log.level=warning' ]);

# One connection of each kind; the common ones more often.
my @kinds = (
    ([ plain => sub ($c) {
        $c->ask('GET', 'http://' . $plain->addr . '/')->{body} eq 'ok' } ]) x 6,
    ([ kept => sub ($c) {
        my $n = 0;
        $n += $c->ask('GET', 'http://' . $plain->addr . '/')->{body} eq 'ok'
            for 1 .. 3;
        $n == 3 } ]) x 2,
    ([ post => sub ($c) {
        $c->ask('POST', 'http://' . $plain->addr . '/',
            ['Content-Length: 3'], 'abc')->{body} eq 'ok' } ]) x 2,
    ([ silent  => sub ($c) { 1 } ]) x 2,
    ([ refused => sub ($c) {
        $c->ask('GET', "http://127.0.0.1:$dead/")->{status} == 502 } ]) x 2,
    [ bad => sub ($c) { $c->put("nonsense\r\n\r\n");
        $c->get_answer->{status} == 400 } ],
    [ half => sub ($c) { $c->put('GET http://x.te') } ],
    [ left => sub ($c) {
        $c->put(request('GET', 'http://' . $plain->addr . '/'));
        $c->reset; 1 } ],
    [ cut => sub ($c) {
        !$c->ask('GET', 'http://' . $plain->addr . '/cut')->{complete} } ],
    [ reset => sub ($c) {
        $c->ask('GET', 'http://' . $plain->addr . '/reset')->{status} == 502 } ],
    ([ tunnel => sub ($c) {
        $c->connect($raw->addr);
        $c->put("\0raw");
        $c->get_eof eq "\0raw" } ]) x 2,
    [ aborted => sub ($c) { $c->connect($raw->addr); $c->reset; 1 } ],
    ([ intercepted => sub ($c) {
        $c->connect('good.test:443');
        $c->tls_client(sni => 'good.test', ca => $w->ca)
            && $c->ask('GET', '/', ['Host: good.test'])->{body} eq 'ok' } ]) x 2,
    [ distrusted => sub ($c) {
        $c->connect('good.test:443');
        !$c->tls_client(sni => 'good.test',
            ca => $certs->{stranger}{cert}) } ],
    [ page => sub ($c) {
        $c->ask('GET', '/', [ 'Host: ' . $w->addr ])->{status} == 200 } ],
);

# A connection now and then, so that all that is made once is there.
$_->[1]->($w->client) for @kinds;

sub settled()
{
    my ($least, $same) = (1e9, 0);
    wait_for('what is idle to be closed', sub {
        my $n = $w->n_fds;
        ($least, $same) = $n < $least ? ($n, 0) : ($least, $same + 1);
        return $same > 600; # 3 s without a smaller number
    }, 60);
    return $least;
}
my $before  = settled();
my $threads = $w->status('Threads');

my %went;
my @pids;
my $dir = scratch('counts', 1);
for my $client (1 .. CLIENTS) {
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        my %n;
        for my $n (1 .. CONNECTIONS / CLIENTS) {
            my ($kind, $do) = $kinds[ ($n * 7 + $client) % @kinds ]->@*;
            my $good = eval {
                my $c = $w->client;
                my $good = $do->($c);
                $n % 3 ? $c->close : $c->reset;
                $good;
            };
            $n{ $good ? 'good' : "$kind: " . ($@ || 'wrong answer') }++;
        }
        spew("$dir/$client", join '', map { "$n{$_}\t$_\n" } sort keys %n);
        POSIX::_exit(0);
    }
    push @pids, $pid;
}
waitpid $_, 0 for @pids;
for my $client (1 .. CLIENTS) {
    my $counts = slurp("$dir/$client");
    $went{$2} += $1 while $counts =~ /^(\d+)\t(.*)$/mg;
}
is $went{good}, CONNECTIONS, CONNECTIONS . ' connections went as they should'
    or diag explain \%went;
my $after = settled();
cmp_ok $after, '<=', $before, "descriptors: $before before, $after after";
cmp_ok $w->status('Threads'), '<=', $threads + 10 * CLIENTS,
    'threads are not left either';
ok $w->client->ask('GET', 'http://' . $plain->addr . '/')->{body} eq 'ok',
    'and it still serves';
$w->stop;
done_testing;
