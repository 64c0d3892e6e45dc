#!/usr/bin/perl
# IPv6 that leads nowhere, in a network namespace of its own: packets vanish,
# nobody says so, and a page must come by IPv4 all the same and soon.
# RFC 8305 section 5.  In there SOCKS also meets networks and hosts that cannot
# be reached.
#
# Needs root, or user namespaces.  Where there are none, a port of ::1 that
# neither accepts nor refuses is the black hole, if "localhost" has both
# addresses; else t/dial runs.  The rest is left out, and said so.
use v5.36;
use Socket qw(getaddrinfo inet_aton AF_INET AF_INET6 SOCK_STREAM);
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
    exit $r->{exit} if $r->{out} =~ /^(ok|not ok|1\.\.)/m;
    without_namespace();
    done_testing;
    exit;
}

# The same by a full queue on ::1.
sub without_namespace()
{
    diag 'no network namespace can be made here: a full queue on ::1 stands '
        . 'for IPv6 that leads nowhere; SOCKS codes 3 and 4 are not tried';
    my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    my $plain = origin(sub ($c) { $c->put($hello) while $c->get_request });
    my (undef, @names) = getaddrinfo('localhost', $plain->port,
        { socktype => SOCK_STREAM });
    my @hole = eval { full_queue($plain->port) };
    my $both = grep({ $_->{family} == AF_INET6 } @names)
        && grep({ $_->{family} == AF_INET } @names);
    if (!@hole || !$both) {
        diag 'nor is localhost both ::1 and 127.0.0.1: t/dial has the race, '
            . 'with a resolver of its own';
        my $r = run([ $ENV{WEIR} =~ s{[^/]+$}{t/dial}r ]);
        like $r->{out}, qr/^ok .*after a head start of 250 ms/m, "the race alone" or diag $r->{err};
        is $r->{exit}, 0, 'by t/dial';
        return;
    }
    my $w = Weir->start(set => [ 'upstream.connect_s=2',
        'upstream.reuse_per_origin=0' ]);
    for my $n (1 .. 3) {
        my $from = time;
        my $c = $w->client;
        is $c->ask('GET', 'http://localhost:' . $plain->port . '/')->{body},
            'hello', 'an answer';
        cmp_ok time - $from, '<', 0.6, 'in under 600 ms';
        $c->close;
    }
    like $w->log, qr/origin=127\.0\.0\.1:/, 'by IPv4';
    $w->stop;
}

sub full_queue($port)
{
    my $l = IO::Socket::IP->new(LocalHost => '::1', LocalPort => $port,
        Listen => 1) or die "::1: $@";
    return ($l, map {
        IO::Socket::IP->new(PeerHost => '::1', PeerPort => $port,
            Timeout => 0.2)
    } 1 .. 4);
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

# ---- what SOCKS says of it
$w = Weir->start(set => [ 'upstream.connect_s=9', 'upstream.breaker=no' ]);
for ([ '203.0.113.1', 3, 'a network nobody leads to' ],
    [ '198.18.0.9', 4, 'a host that is not there' ]) {
    my ($host, $want, $what) = @$_;
    my $c = $w->client;
    $c->put("\5\1\0");
    $c->get(2);
    $c->put("\5\1\0\1" . inet_aton($host) . pack 'n', 80);
    is ord(substr $c->get(10), 1), $want, "SOCKS 5: $what: $want"
        or diag $w->log;
}
$w->stop;
done_testing;
