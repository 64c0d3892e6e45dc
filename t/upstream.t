#!/usr/bin/perl
# The way to an origin: names, both families, overrides, whom to trust.
# RFC 8305; [resolve] and [upstream] of weir.ini(5).
use v5.36;
use Test::More;
use Time::HiRes qw(time);
use Weir;

my $certs = certs();
my $six   = eval { listener(host => '::1') };

sub serve($c)
{
    while ($c->get_request) {
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

# ---- one name, two families
{
    my $w = Weir->start(set => ['intercept.enable=no']);
    my $four = origin(\&serve);
    is $w->client->ask('GET', "http://localhost:${\ $four->port}/")->{body},
        'ok', 'localhost, an origin on IPv4 alone';
    SKIP: {
        skip 'this machine has no IPv6', 2 if !$six;
        my $o6 = origin(\&serve, host => '::1');
        is $w->client->ask('GET', "http://[::1]:${\ $o6->port}/")->{body},
            'ok', 'an IPv6 literal';
        for my $name (qw(localhost ip6-localhost)) { # whichever is known here
            next if run([ qw(getent ahostsv6), $name ])->{out} !~ /^::1 /m;
            is $w->client->ask('GET', "http://$name:${\ $o6->port}/")->{body},
                'ok', "$name, an origin on IPv6 alone";
        }
        my ($seen) = do {
            my $c = $w->client;
            $c->put("GET http://[::1]:${\ $six->port}/ HTTP/1.1\r\n"
                    . "Host: x\r\n\r\n");
            my $s = $six->accept;
            my $r = $s->get_request;
            $s->put("HTTP/1.1 204 No Content\r\n\r\n");
            $c->get_answer;
            $r;
        };
        is field($seen, 'host'), "[::1]:${\ $six->port}",
            'Host has the brackets';
    }
    $w->stop;
}

# ---- [resolve]
{
    my $o = origin(\&serve);
    my @port = (port => $o->port);
    my $w = Weir->start(set => [ 'intercept.enable=no',
        'resolve.one.test=127.0.0.1:' . $o->port,
        'resolve.Two.Test=127.0.0.1',
        'resolve.dead.test=127.0.0.1:' . closed_port(),
        ($six ? 'resolve.six.test=[::1]:' . $six->port : ()) ]);
    is $w->client->ask('GET', 'http://one.test/')->{body}, 'ok',
        'name = address:port';
    is $w->client->ask('GET', "http://two.test:$port[1]/")->{body}, 'ok',
        'name = address keeps the port; names in any case';
    is $w->client->ask('GET', "http://one.test:9/")->{body}, 'ok',
        'address:port replaces the port';
    my $r = $w->client->ask('GET', 'http://dead.test/');
    is $r->{status}, 502, 'a dead one: 502';
    like $r->{body}, qr/dead\.test/, 'that names it as it was asked for';
    like $o->notes, qr/Host: one\.test\b/, 'Host is the name';
    my $c = $w->client;
    $c->connect('one.test:443');
    is $c->ask('GET', '/', ['Host: one.test'])->{body}, 'ok',
        'CONNECT goes by it too';
    SKIP: {
        skip 'this machine has no IPv6', 1 if !$six;
        my $c = $w->client;
        $c->put("GET http://six.test/ HTTP/1.1\r\nHost: six.test\r\n\r\n");
        my $s = $six->accept;
        is field($s->get_request, 'host'), 'six.test', 'name = [address]:port';
    }
    $w->stop;
}

# ---- trust
{
    my $o = origin(\&serve, tls => $certs->{good});
    my $to = 'resolve.good.test=127.0.0.1:' . $o->port;
    for my $case (
        [ 'no upstream_ca', [], 502 ],
        [ 'upstream_ca', ["upstream.upstream_ca=$certs->{ca}{cert}"], 200 ],
        [ 'upstream_ca of somebody else',
            ["upstream.upstream_ca=$certs->{stranger}{cert}"], 502 ],
        [ 'insecure glob', ['upstream.insecure=*.test'], 200 ],
    ) {
        my ($name, $set, $code) = @$case;
        my $w = Weir->start(set => [ $to, @$set ]);
        my $r = curl($w, '--cacert', $w->ca, 'https://good.test/');
        is $r->{code}, $code, "$name: $code" or diag explain $r;
        # the same without interception: absolute-form with https
        $r = $w->client->ask('GET', 'https://good.test/');
        is $r->{status}, $code, "$name, asked in the clear: $code"
            or diag $r->{head};
        $w->stop;
    }
}

{ # HUP: another file, the same file with something else in it, a bad one
    my $o    = origin(\&serve, tls => $certs->{good});
    my $ini  = "[resolve]\ngood.test = 127.0.0.1:" . $o->port . "\n";
    my $pem  = scratch('trusted');
    my $w    = Weir->start(conf => $ini);
    my $file = $w->home . '/test.ini';
    my $n    = 0;
    my $now  = sub { $w->client->ask('GET', 'https://good.test/')->{status} };
    my $hup  = sub ($what, $re) {
        my $had = () = $w->log =~ /$re/g;
        $w->signal('HUP');
        ok wait_for($what, sub { (() = $w->log =~ /$re/g) > $had }), $what;
    };
    my $new = qr/ reload .*new settings/;
    is $now->(), 502, 'a CA that nobody trusts';
    spew($pem, slurp($certs->{ca}{cert}));
    spew($file, "$ini\[upstream]\nupstream_ca = $pem\n");
    $hup->('HUP: an upstream_ca', $new);
    is $now->(), 200, 'is trusted';
    $hup->('HUP: and nothing new', $new);
    is $now->(), 200, 'is trusted still';
    spew($pem, "nothing\n");
    $hup->('HUP: no certificate in it', qr/upstream_ca \Q$pem\E: no certificate/);
    is $now->(), 200, 'those of before are trusted';
    spew($pem, slurp($certs->{stranger}{cert}));
    $hup->('HUP: another CA in the same file', $new);
    is $now->(), 502, 'the one of before is trusted no more';
    unlike $w->log, qr/needs a restart/, 'and none of it needs a restart';
    $w->stop;
}

# ---- a bad setting is found at the start
{
    my $r = weir_run([ '-t', '--set', 'upstream.upstream_ca=/nowhere' ]);
    is $r->{exit}, 1, 'an upstream_ca that is not there';
    like $r->{err} . $r->{out}, qr{upstream_ca.*/nowhere}, 'is named';
}

done_testing;
