#!/usr/bin/perl
# HTTP/3 below the requests: start, addresses, handshakes, paths, limits, end.
use v5.36;
use lib 't/lib';
use IO::Socket::IP;
use Socket qw(SOCK_DGRAM);
use Test::More;
use Ways ();
use Weir;
use Weir::H3;

my $o = origin(sub ($c) {
    while (my $r = $c->get_request) {
        my ($n) = $r->{target} =~ m{^/(\d+)};
        $n //= 5;
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: $n\r\n\r\n" . 'x' x $n);
    }
});

sub get($path = '/')
{
    return [ ':method', 'GET', ':scheme', 'http', ':authority', $o->addr,
        ':path', $path ];
}

# gtlsclient asks for $path; what it says.
sub gtls($w, $path, @args)
{
    my $to  = Weir::scratch('down', 1);
    my $run = run([ 'gtlsclient', '--exit-on-all-streams-close',
            '--no-http-dump', "--download=$to", @args, '127.0.0.1', $w->port,
            "http://${\ $o->addr}/$path" ]);
    $run->{got} = -s "$to/$path" // 0;
    return $run;
}

# ---- start
{
    my $w = Weir->start;
    my $taken = IO::Socket::IP->new(Proto => 'udp', LocalHost => '127.0.0.1',
        LocalPort => Ways::free_udp_port()); # whose TCP twin is free
    my $run = Weir::weir_run([ '--set',
            'proxy.listen=127.0.0.1:' . $taken->sockport ]);
    is $run->{exit}, 1, 'a UDP port that is taken: no start';
    like $run->{err}, qr/by UDP, for \[proxy\] http3: .*in use/, '  it says why';
    $run = gtls($w, '1000');
    is $run->{got}, 1000, 'gtlsclient is served';
    like $w->log, qr/conn=1 exchange n=1 stream=0 .*version=http\/3 .*status=200/,
        '  and logged';
    $w->wait_log(qr/conn=1 close .*spoke=http\/3 exchanges=1 /);
    pass '  its end as well';
    $w->stop;
}
{
    my $w = Weir->start(set => ['proxy.http3=no']);
    my $free = IO::Socket::IP->new(Proto => 'udp', LocalHost => '127.0.0.1',
        LocalPort => $w->port);
    ok $free, 'http3 = no: nobody has the UDP port';
    $w->stop;
}

# ---- addresses: the answer comes from where it was asked
for my $any ([ '0.0.0.0', '127.0.0.1' ], [ '0.0.0.0', '127.0.0.2' ],
    [ '[::]', '::1' ]) {
    my ($bound, $host) = @$any;
    my $w = Weir->start(listen => "$bound:0");
    my $c = Weir::H3->client(host => $host, port => $w->port);
    is $c->answer($c->request(get()))->{body}, 'xxxxx',
        "bound to $bound, asked at $host";
    $c->close;
    $w->stop;
}

# ---- handshakes
{
    my $w   = Weir->start(set => ['http3.retry=always']);
    my $run = gtls($w, '2000');
    is $run->{got}, 2000, 'retry = always';
    like $run->{err} . $run->{out}, qr/Retry/, '  with a Retry';
    $w->stop;
}
{
    my $w = Weir->start(set => ['http3.half_open=0']);
    my $run = gtls($w, '2000');
    like $run->{err} . $run->{out}, qr/Retry/, 'half_open: a Retry from there on';
    is $run->{got}, 2000, '  and then an answer';
    $w->stop;
}
my $keys = Weir::scratch('keys');
my $w = Weir->start(env => { SSLKEYLOGFILE => $keys });
{
    my $run = gtls($w, '10', '-v', '0x1a2a3a4a');
    like $run->{err} . $run->{out}, qr/pkt rx 0 VN v=0x00000001/,
        'a version that nobody knows: those that we do';
    $run = gtls($w, '3000', '-v', 'v2');
    is $run->{got}, 3000, 'QUIC version 2';
    my $file = Weir::scratch('session');
    my @args = ("--session-file=$file", "--tp-file=$file.tp",
        '--disable-early-data');
    gtls($w, '10', @args);
    $run = gtls($w, '4000', @args);
    is $run->{got}, 4000, 'a session is resumed';
    unlike $run->{err} . $run->{out}, qr/CertificateVerify|Certificate message/,
        '  without a certificate';
    like slurp($keys), qr/^CLIENT_TRAFFIC_SECRET_0 /m, 'SSLKEYLOGFILE';
}

# ---- paths and keys
for my $how (
    [ 'migration', '--change-local-addr=1ms' ],
    [ 'key update', '--key-update=1ms' ],
    [ 'loss', '-t', '0.05', '-r', '0.05' ],
) {
    my ($what, @args) = @$how;
    is gtls($w, 3_000_000, @args)->{got}, 3_000_000, "3 MB with $what";
}

for my $what ('rebind', 'migrate', 'update') {
    my $c = Weir::H3->client(port => $w->port);
    for (1 .. 2) {
        $c->answer($c->request(get()));
        $c->tell($what);
        my $s = $c->answer($c->request(get('/30000')));
        is length $s->{body}, 30_000, "$what, between two requests";
    }
    $c->close;
}

# ---- one after the other
{
    my $c = Weir::H3->client(port => $w->port);
    is $c->answer($c->request(get()))->{status}, 200, 'a request';
    my $id = $c->request([ ':method', 'CONNECT', ':authority', $o->addr ],
        end => 0);
    $c->until(sub { $c->stream($id)->{status} });
    $c->data($id, "GET / HTTP/1.1\r\nHost: ${\ $o->addr}\r\n\r\n");
    $c->until(sub { $c->stream($id)->{body} =~ /xxxxx$/ });
    like $c->stream($id)->{body}, qr/^HTTP\/1.1 200/, 'a tunnel beside it';
    $c->reset_stream($id, 'REQUEST_CANCELLED');
    $c->until(sub { $c->stream($id)->{reset} });
    is $c->stream($id)->{reset}, 'CONNECT_ERROR', '  that is cut: both ways';
    my $l = listener();
    $id = $c->request([ @{ get() }[ 0 .. 3 ], ':authority', $l->addr, ':path',
            '/' ]);
    my $s = $l->accept;
    $s->get_request;
    $c->stop_stream($id, 'REQUEST_CANCELLED');
    $w->wait_log(qr/stream=8 .*why=over by=client/);
    pass 'a client that wants no answer: the origin is told';
    $c->close;
}

# ---- a weir that forgot: stateless reset, after a restart as well
{
    my $c = Weir::H3->client(port => $w->port);
    $c->answer($c->request(get()));
    my ($port, $home) = ($w->port, $w->home);
    $w->signal('KILL');
    Weir::wait_for('its end', sub { !kill(0, $w->pid) || Weir::reap($w) });
    my $again = Weir->start(home => $home, listen => "127.0.0.1:$port");
    $c->request(get());
    is $c->ending =~ s/ .*//r, 'reset', 'a stateless reset after a restart';
    $w = $again;
}

# ---- many that are silent cost no worker
$w->stop;
$w = Weir->start(set => [ 'proxy.workers=4', 'http3.idle_s=4',
        'http3.connections=30', 'access.connections=20' ]);
{
    my @c = map { Weir::H3->client(port => $w->port) } 1 .. 20;
    is scalar(grep { $_->answer($_->request(get()))->{status} == 200 } @c), 20,
        'twenty connections and four workers';
    is scalar(grep { $_->answer($_->request(get()))->{status} == 200 } @c), 20,
        '  and again';
    my $more = Weir::H3->client(port => $w->port);
    is $more->ending, 'transport 2', 'a client with too many: refused';
    $w->wait_log(qr/close .*spoke=http\/3 exchanges=2/, 20);
    Weir::wait_for('all to be over',
        sub { (() = $w->log =~ /spoke=http\/3 exchanges=2/g) == 20 });
    pass 'they end when they were idle for long enough';
}

# ---- the end: those that are under way may finish
{
    my $l = listener();
    my $c = Weir::H3->client(port => $w->port);
    my $id = $c->request([ @{ get() }[ 0 .. 3 ], ':authority', $l->addr,
            ':path', '/' ]);
    my $idle = Weir::H3->client(port => $w->port);
    $idle->answer($idle->request(get()));
    my $s = $l->accept;
    $s->get_request;
    $w->signal('TERM');
    $c->until(sub { defined $c->{goaway} });
    ok defined $c->{goaway}, 'TERM: GOAWAY';
    is $idle->ending, 'application NO_ERROR', '  an idle connection ends';
    $s->put("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast");
    is $c->answer($id)->{body}, 'last', '  an answer is completed';
    is $c->ending, 'application NO_ERROR', '  and then it ends';
    is Weir::reap($w), 0, '  as does weir';
}
done_testing;
