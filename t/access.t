#!/usr/bin/perl
# Who may use weir, and where to: clients by address, targets by name and by
# what it resolves to; one log line with the rule; connections counted.
use v5.36;
use Socket qw(inet_aton);
use Test::More;
use Weir;
use Ways;

my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
my $plain = origin(sub ($c) { $c->put($hello) while $c->get_request });
my $port  = $plain->port;

sub n_lines($w, $re)
{
    my $n = () = $w->log =~ /$re/mg;
    return $n;
}

# What a client that comes from $from gets: HTTP, CONNECT, SOCKS 5, SOCKS 4.
sub from($w, $from)
{
    my $r = sub ($bytes, $n) {
        my $sock = IO::Socket::IP->new(PeerHost => '127.0.0.1',
            PeerPort => $w->port, LocalHost => $from) or die "$from: $@";
        my $c = Weir::Wire->new($sock);
        $c->put($bytes);
        return $n ? $c->get($n) : $c->get_answer(connect => 1)->{status};
    };
    my $to = pack('n', $port);
    return join ' ', $r->(request('GET', "http://127.0.0.1:$port/"), 0),
        $r->("CONNECT 127.0.0.1:$port HTTP/1.1\r\nHost: x\r\n\r\n", 0),
        ord substr($r->("\5\1\0\5\1\0\1" . inet_aton('127.0.0.1') . $to, 12), 3),
        ord substr($r->("\4\1$to" . inet_aton('127.0.0.1') . "\0", 8), 1);
}

# ---- clients
{
    my $w = Weir->start(set => [ 'access.deny=127.0.0.2, 127.9.0.0/16' ]);
    is from($w, '127.0.0.1'), '200 200 0 90', 'this machine may';
    is from($w, '127.0.0.2'), '403 403 2 91', 'deny: an address';
    is from($w, '127.9.8.7'), '403 403 2 91', 'deny: a block';
    is n_lines($w, qr/ denied .*rule=127\.0\.0\.2/), 4, 'a line each, with the rule';
    my $got = curl($w, '--interface', '127.0.0.2', "http://127.0.0.1:$port/");
    is $got->{code}, 403, 'curl sees it';
    like $got->{out}, qr/\[access\]/, 'and what to look at';
    is curl($w, '--interface', '127.0.0.2', 'http://weir.invalid/')->{code}, 403,
        'our own pages are not for him either';
    $w->stop;
    $w = Weir->start(set => [ 'access.deny=127.0.0.2', 'access.allow=127.0.0.2, 192.0.2.0/24' ]);
    is from($w, '127.0.0.2'), '403 403 2 91', 'deny wins over allow';
    is from($w, '127.0.0.1'), '200 200 0 90', 'the default is still there';
    $w->stop;
}
SKIP: { # an address of this machine that is no loopback
    my ($own) = `ip -4 -o addr show scope global 2>/dev/null` =~ /inet ([\d.]+)/;
    if (!$own) {
        system 'ip link add weirtest0 type dummy 2>/dev/null && '
            . 'ip addr add 198.18.7.1/24 dev weirtest0 && ip link set weirtest0 up';
        $own = '198.18.7.1' if $? == 0;
    }
    skip 'this machine has the loopback alone, and no way to another', 8 if !$own;
    my $at = "http://127.0.0.1:$port/";
    for (['nothing set', 403, 1], ['access.allow=192.0.2.1', 403, 0], ["access.allow=$own", 200, 0],
        ['proxy.users=a:b', 407, 0]) {
        my ($set, $want, $warns) = @$_;
        my $w = Weir->start(listen => "$own:0", set => [ $set =~ /=/ ? $set : () ]);
        my $r = curl(undef, '-x', "http://$own:" . $w->port, $at);
        is $r->{code}, $want, "a client that is not of the loopback, $set: $want";
        is $w->out =~ /warning/ ? 1 : 0, $warns, 'and a warning at start' . ($warns ? '' : ' is not needed');
        $w->stop;
    }
    system 'ip link del weirtest0 2>/dev/null' if $own eq '198.18.7.1';
}

# ---- targets
my @resolve = map { "resolve.$_" } 'good.test=127.0.0.1', 'bad.test=127.0.0.1',
    'rebound.test=127.0.0.3', 'six.test=::ffff:127.0.0.3', 'sub.bad.test=127.0.0.1';

sub codes($w, @hosts)
{
    return join ' ', map { curl($w, "http://$_/")->{code} } @hosts;
}
{
    my $w = Weir->start(set => [ @resolve,
        'access.target_deny=.bad.test, 127.0.0.3/32, glob*.test, *:81' ]);
    is codes($w, "good.test:$port", "bad.test:$port", "sub.bad.test:$port"), '200 403 403',
        'a name and what is below';
    is codes($w, "127.0.0.3:$port", "rebound.test:$port", "six.test:$port"), '403 403 403',
        'an address, also behind a name, also in IPv6 clothes';
    is codes($w, 'glob7.test', 'good.test:81'), '403 403', 'a glob, a port';
    is n_lines($w, qr/ denied .*target=rebound\.test:$port .*rule=127\.0\.0\.3\/32/), 1,
        'one line, with the rule';
    is n_lines($w, qr/127\.0\.0\.3\/32/), 3, 'and not in any other';
    is curl($w, '-p', "http://bad.test:$port/")->{connect}, 403, 'CONNECT: 403';
    my $c = $w->client;
    $c->put("\5\1\0\5\1\0\3\x08bad.test" . pack 'n', $port);
    is ord substr($c->get(12), 3), 2, 'SOCKS: 2';
    like field($w->client->ask('GET', "http://bad.test:$port/"), 'proxy-status'),
        qr/error=http_request_denied/, 'Proxy-Status';
    $w->stop;
}
{
    my $w = Weir->start(set => [ @resolve, 'access.target_allow=good.test, 127.0.0.3, 127.0.0.1:1' ]);
    is codes($w, "good.test:$port", "bad.test:$port", "127.0.0.1:$port"), '200 403 403',
        'allow alone: what it names';
    isnt curl($w, "http://rebound.test:$port/")->{code}, 403, 'or what resolves to it';
    my $l = listener();
    my $p = Weir->start(set => [ 'access.target_allow=good.test', 'access.target_deny=worse.test',
        'upstream.parent=http://127.0.0.1:' . $l->port ]);
    is codes($p, 'bad.test', 'worse.test'), '403 403', 'through a parent the name counts';
    ok !$l->waiting, 'which is not asked';
    $p->stop;
    $w->stop;
}
{ # a reload closes what was open
    my $home = scratch('home', 1);
    my $ini  = "$home/test.ini";
    my $w = Weir->start(home => $home, conf => "[upstream]\nreuse_s = 30\n");
    my $c = $w->client;
    is $c->ask('GET', "http://127.0.0.1:$port/")->{status}, 200, 'allowed at first';
    spew($ini, "[access]\ntarget_deny = 127.0.0.1:$port\n");
    $w->signal('HUP');
    $w->wait_log(qr/reload/);
    is $c->ask('GET', "http://127.0.0.1:$port/")->{status}, 403,
        'denied after a reload, on a connection that is kept';
    $w->stop;
}

# ---- connections of one client
{
    my $w = Weir->start(set => [ 'access.connections=4' ]);
    my @c = map { $w->client } 1 .. 4;
    is $_->ask('GET', "http://127.0.0.1:$port/")->{status}, 200, 'one of four' for @c;
    my $c = $w->client;
    is $c->get_answer->{status}, 503, 'the fifth: 503';
    like $w->wait_log(qr/connections of one client/), qr/why=(busy|limit)/, 'logged';
    my $other = IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $w->port,
        LocalHost => '127.0.0.5');
    is Weir::Wire->new($other)->ask('GET', "http://127.0.0.1:$port/")->{status}, 200,
        'another client may';
    (shift @c)->close;
    wait_for('a place', sub {
        my $c = $w->client;
        $c->put(request('GET', "http://127.0.0.1:$port/"));
        return $c->get_answer->{status} == 200;
    });
    pass 'and who leaves makes room';
    $w->stop;
}
done_testing;
