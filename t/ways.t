#!/usr/bin/perl
# Clients that people use, in by SOCKS and out through parents: ssh (whose
# server speaks first), Chromium, and HTTP/2 clients of a proxy with users.
use v5.36;
use Test::More;
use Weir;
use Weir::H2;
use Ways;

my $certs = certs();
my $hello = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    . "Content-Length: 12\r\n\r\n<p>hello</p>";
my $plain = origin(sub ($c) { $c->put($hello) while $c->get_request });
my $tls   = origin(sub ($c) { $c->put($hello) while $c->get_request },
    tls => $certs->{good});
my $micro = microsocks();
my $squid = squid(user => 'ann', password => 'pw');
my @set = ("upstream.upstream_ca=$certs->{ca}{cert}", 'proxy.grace_s=1');
my %out = (
    direct => [],
    microsocks => ["upstream.parent=socks5://127.0.0.1:$micro->{port}"],
    squid  => ["upstream.parent=http://ann:pw\@127.0.0.1:$squid->{port}"],
);

# ---- ssh
my $keys = scratch('ssh', 1);
for my $key ('host', 'user') {
    is run([ 'ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', "$keys/$key" ])
        ->{exit}, 0, "a key of the $key";
}
spew("$keys/authorized", slurp("$keys/user.pub"));
mkdir '/run/sshd' if $> == 0;
my $ssh_port = free_port();
my $me = getpwuid $>;
spew("$keys/config", join "\n", "Port $ssh_port", 'ListenAddress 127.0.0.1',
    "HostKey $keys/host", "AuthorizedKeysFile $keys/authorized", 'UsePAM no',
    'StrictModes no', 'PermitRootLogin yes', "PidFile $keys/pid", '');
my $sshd = start_process([ '/usr/sbin/sshd', '-D', '-e', '-f', "$keys/config" ]);
wait_for('sshd', sub { IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $ssh_port) });
for my $way (sort keys %out) {
    my $w = Weir->start(set => [ @set, $out{$way}->@* ]);
    my $r = run([ 'ssh', '-F', '/dev/null', '-i', "$keys/user", '-p', $ssh_port,
        '-o', 'StrictHostKeyChecking=no', '-o', "UserKnownHostsFile=$keys/known",
        '-o', 'BatchMode=yes', '-o', 'LogLevel=ERROR', '-o',
        "ProxyCommand=socat - SOCKS4A:127.0.0.1:localhost:%p,socksport=" . $w->port,
        "$me\@localhost", 'cat; echo done' ], in => spew(scratch('in'), 'x' x 300_000));
    is length $r->{out}, 300_005, "ssh by SOCKS, $way" or diag $r->{err}, $w->log, slurp($sshd->{err});
    like $w->wait_log(qr/ tunnel /), qr/target=localhost:$ssh_port.*down=3\d{5}/, 'as a tunnel';
    $w->stop;
}

# ---- Chromium
my $home = scratch('browser', 1);
mkdir "$home/.pki";
mkdir "$home/.pki/nssdb";
my @db = ('-d', "sql:$home/.pki/nssdb");
run([ 'certutil', @db, '-N', '--empty-password' ]);
my $weir_home = scratch('home', 1);
for my $way (sort keys %out) {
    my $w = Weir->start(home => $weir_home, set => [ @set, $out{$way}->@* ]);
    run([ 'certutil', @db, '-A', '-t', 'C,,', '-n', 'weir', '-i', $w->ca ]);
    for my $url ('https://localhost:' . $tls->port . '/', 'http://127.0.0.1:' . $plain->port . '/') {
        my $r = run([ 'chromium', qw(--headless --no-sandbox --disable-gpu
            --disable-quic --no-first-run --disable-background-networking
            --disable-component-update --disable-sync --disable-dev-shm-usage
            --proxy-bypass-list=<-loopback> --dump-dom),
            '--proxy-server=socks5://' . $w->addr,
            '--user-data-dir=' . scratch('profile', 1), $url ],
            env => { HOME => $home }, limit => 2 * LIMIT);
        like $r->{out}, qr{<p>hello</p>}, "Chromium by socks5://, $way, $url"
            or diag substr $w->log, -2000;
    }
    like $w->log, qr/spoke=intercepted/, 'https was intercepted';
    $w->stop;
}

# ---- WebSocket through interception
my $ws = origin(sub ($c) {
    my $r = $c->get_request or return;
    $c->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
        . "Upgrade: websocket\r\n\r\n\x81\2hi");
    $c->put($c->get_some) for 1 .. 3;
}, tls => { $certs->{good}->%*, alpn => ['http/1.1'] });
for my $way (sort keys %out) {
    my $w = Weir->start(home => $weir_home, set => [ @set, $out{$way}->@* ]);
    my $c = $w->client;
    $c->connect('localhost:' . $ws->port);
    ok $c->tls_client(sni => 'localhost', ca => $w->ca), "wss, $way" or diag $c->{error};
    $c->put("GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        . "Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n");
    is $c->get_answer->{status}, 101, 'switches';
    is $c->get(4), "\x81\2hi", 'frames come down';
    for my $n (1 .. 3) {
        $c->put("\x81\x84abcd$n---");
        is $c->get(10), "\x81\x84abcd$n---", 'and go up';
    }
    $c->close;
    $w->stop;
}

# ---- HTTP/2: in from clients, out through parents
my $front = free_port();
my $docs  = scratch('docs', 1);
my $nghttpd = start_process([ 'nghttpd', '-d', $docs, $front,
    $certs->{good}{key}, $certs->{good}{cert} ]);
spew("$docs/page", 'over HTTP/2');
wait_for('nghttpd', sub { IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $front) });
for my $way (sort keys %out) {
    my $w = Weir->start(home => $weir_home, set => [ @set, $out{$way}->@* ]);
    my $r = curl($w, '--http2', '--cacert', $w->ca, ("https://localhost:$front/page") x 3);
    is $r->{out}, 'over HTTP/2' x 3, "HTTP/2 through interception, $way" or diag $r->{err}, $w->log;
    is $r->{version}, 2, 'is HTTP/2 here';
    $r = curl($w, '--http1.1', '--cacert', $w->ca, "https://localhost:$front/page");
    is $r->{out}, 'over HTTP/2', 'and from HTTP/1.1';
    like $w->log, qr/parent=/, 'through the parent' if $way ne 'direct';
    $w->stop;
}
{
    my $w = Weir->start(set => [ @set, 'proxy.users=ann:pw' ]);
    my $r = run([ 'nghttp', '-v', "http://${\ $w->addr}/", '-H', ':scheme: http',
        '-H', ':authority: 127.0.0.1:' . $plain->port ]);
    like $r->{out}, qr/:status: 407/, 'an HTTP/2 client without a user: 407';
    like $r->{out}, qr/proxy-authenticate: Basic realm/, 'and the challenge';
    $r = run([ 'nghttp', '-v', "http://${\ $w->addr}/", '-H',
        ':authority: 127.0.0.1:' . $plain->port, '-H',
        'proxy-authorization: Basic YW5uOnB3' ]);
    like $r->{out}, qr/:status: 200/, 'with one: 200';
    my $h = Weir::H2->client($w->client); # CONNECT, stream by stream
    my $o = listener();
    my @connect = (':method', 'CONNECT', ':authority', $o->addr);
    for my $bad ([], [ 'proxy-authorization', 'Basic Ym9iOng=' ]) {
        my $s = $h->answer($h->request([ @connect, @$bad ], end => 0));
        is $s->{status}, 407, 'a CONNECT stream without a user of ours: 407';
        like field({ fields => $s->{fields} }, 'proxy-authenticate'),
            qr/^Basic realm="weir"/, 'and the challenge';
        like field({ fields => $s->{fields} }, 'proxy-status'),
            qr/http_request_denied/, 'Proxy-Status';
    }
    my $id = $h->request([ @connect, 'proxy-authorization',
        'Basic YW5uOnB3' ], end => 0);
    my $far = $o->accept;
    ok $h->until(sub { $h->stream($id)->{status} }), 'with one on the same';
    is $h->stream($id)->{status}, 200, 'is granted';
    $h->data($id, "\0up");
    is $far->get(3), "\0up", 'a tunnel';
    ok !$o->waiting, 'and nobody else came';
    $w->stop;
}
stop_process($_) for $sshd, $nghttpd;
done_testing;
