#!/usr/bin/perl
# IPv6 that leads nowhere, in a network namespace of its own: packets vanish,
# nobody says so, and a page must come by IPv4 all the same and soon.
# RFC 8305 section 5.  Needs root, or user namespaces.
use v5.36;
use Test::More;
use Time::HiRes qw(time);
use Weir;

if (!$ENV{WEIR_INSIDE}) {
    my $hosts = spew(scratch('hosts'), "127.0.0.1 localhost\n"
        . "2001:db8::2 split.test\n198.18.0.1 split.test\n"
        . "2001:db8::2 dark.test\n");
    my $steps = join ' && ', "mount --bind '$hosts' /etc/hosts",
        'ip link set lo up', 'ip link add hole type veth peer name far',
        'ip link set hole up', 'ip link set far up', 'ip addr add 198.18.0.1/24 dev hole',
        'ip -6 addr add 2001:db8::1/64 dev hole nodad',
        # a neighbour that nobody is: else the kernel finds out, and says so
        'ip -6 neigh add 2001:db8::2 lladdr 02:00:00:00:00:01 dev hole',
        "exec '$^X' " . join(' ', map { "'-I$_'" } grep { !ref } @INC) . " '$0'";
    $ENV{WEIR_INSIDE} = 1;
    my $r = run([ 'unshare', ($> == 0 ? () : '-Ur'), '-mn', 'sh', '-c', $steps ],
        limit => 4 * LIMIT);
    print $r->{out};
    print STDERR $r->{err};
    if ($r->{out} !~ /^1\.\.\d/m) {
        fail 'a network namespace can be made';
        done_testing;
    }
    exit $r->{exit};
}

my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
my $plain = origin(sub ($c) { $c->put($hello) while $c->get_request },
    host => '198.18.0.1');
my $tls = origin(sub ($c) { $c->put($hello) while $c->get_request },
    host => '198.18.0.1', tls => { certs()->{wrong}->%* });
my $w = Weir->start(set => [ 'upstream.connect_s=2', 'upstream.insecure=*',
    'upstream.reuse_per_origin=0' ]);
for my $how ([ 'plain', 'http://split.test:' . $plain->port . '/' ],
    [ 'CONNECT', '-p', 'http://split.test:' . $plain->port . '/' ],
    [ 'intercepted', '-k', 'https://split.test:' . $tls->port . '/' ]) {
    my ($name, @args) = @$how;
    my $r = curl($w, @args);
    is $r->{out}, 'hello', "$name: an answer" or diag $r->{err}, $w->log;
}
for my $n (1 .. 3) {
    my $from = time;
    my $c = $w->client;
    is $c->ask('GET', 'http://split.test:' . $plain->port . '/')->{body}, 'hello',
        'again';
    cmp_ok time - $from, '<', 0.6, 'in under 600 ms';
    $c->close;
}
like $w->log, qr/origin=198\.18\.0\.1:/, 'by IPv4';
{
    my $from = time;
    my $got = $w->client->ask('GET', 'http://dark.test:81/');
    is $got->{status}, 504, 'IPv6 alone: 504';
    my $s = time - $from;
    ok $s > 1.5 && $s < 6, 'after connect_s' or diag $s;
}
$w->stop;
done_testing;
