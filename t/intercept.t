#!/usr/bin/perl
# Interception: who is intercepted, what certificate he sees, and what he is
# told when the origin's own certificate is no good.
use v5.36;
use Test::More;
use Time::HiRes qw(time);
use IO::Socket::SSL::Utils;
use Weir;

my $certs = certs();

# Says what it was asked and by whom, and for what name TLS was spoken to it.
sub say_what($c)
{
    my $sni  = $c->{sock}->get_servername // '-';
    my $alpn = $c->{sock}->alpn_selected // '-';
    while (my $r = $c->get_request) {
        my $body = "$r->{method} $r->{target} " . length($r->{body})
            . " host=" . field($r, 'host') . " sni=$sni alpn=$alpn via="
            . (field($r, 'via') // '-');
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: " . length($body)
                . "\r\n\r\n$body");
    }
}

my $o = origin(\&say_what, tls => { $certs->{good}->%*,
    alpn => ['http/1.1'] });
my $bare = origin(\&say_what, tls => $certs->{good});
my @here = map { "resolve.$_=127.0.0.1:" . $o->port }
    qw(good.test sub.good.test new.good.test xn--bcher-kva.good.test
    except.good.test under_score.good.test many.good.test),
    'a23456789.b23456789.c23456789.d23456789.e23456789.f23456789.'
    . 'g23456789.good.test';
my $w = Weir->start(set => [ @here,
    'resolve.bare.good.test=127.0.0.1:' . $bare->port,
    "upstream.upstream_ca=$certs->{ca}{cert}",
    'proxy.via=tester' ]);

# A wire through weir to $target, in TLS as $sni.  Dies if weir's certificate
# does not verify for $name.
sub inside($via, $target, $sni, %o)
{
    my $c = $via->client;
    $c->connect($target);
    $c->tls_client(sni => $sni, ca => $via->ca, name => $sni || $o{name},
        %o) or die "TLS to $target as \"$sni\": $c->{error}\n";
    return $c;
}

# The certificate a client sees, as CERT_asHash has it, with its names joined.
sub leaf($c)
{
    my $cert = $c->{sock}->peer_certificate;
    my $hash = CERT_asHash($cert);
    $hash->{names} = join ' ', sort map { "$_->[0]:$_->[1]" }
        ($hash->{subjectAltNames} // [])->@*;
    my $pem = spew(scratch('leaf.pem'), PEM_cert2string($cert));
    $hash->{text} = run([ qw(openssl x509 -noout -text -in), $pem ])->{out};
    return $hash;
}

# ---- a request through it
{
    my $c   = inside($w, 'good.test:443', 'good.test', alpn => ['http/1.1']);
    my $got = $c->ask('GET', '/a?b', ['Host: good.test']);
    is $got->{status}, 200, 'a request inside';
    like $got->{body}, qr{^GET /a\?b 0 host=good\.test sni=good\.test},
        'reaches the origin in TLS under its name';
    like $got->{body}, qr/via=1\.1 tester/, 'as a proxied request';
    like field($got, 'via'), qr/^1\.1 tester$/, 'and comes back as one';
    is $c->{sock}->alpn_selected, 'http/1.1', 'ALPN is the origin\'s';
    $got = $c->ask('POST', '/p', [ 'Host: good.test', 'Content-Length: 4' ],
        'body');
    like $got->{body}, qr{^POST /p 4 }, 'a second one on the same connection';
    $got = $c->ask('GET', 'https://good.test/abs', ['Host: good.test']);
    like $got->{body}, qr{^GET /abs 0 host=good\.test}, 'absolute-form inside';
}
{
    my $c = inside($w, 'good.test:443', 'good.test',
        alpn => [ 'h2', 'http/1.1' ]);
    is $c->{sock}->alpn_selected, 'http/1.1', 'of h2 and http/1.1: http/1.1';
    like $c->ask('GET', '/', ['Host: good.test'])->{body}, qr/alpn=http/,
        'the origin has chosen it too';
    $c = inside($w, 'bare.good.test:443', 'bare.good.test',
        alpn => [ 'http/1.1' ]);
    like $c->ask('GET', '/', ['Host: bare.good.test'])->{body},
        qr/^GET/, 'an origin without ALPN';
    ok !defined $c->{sock}->alpn_selected, 'is mirrored: none is chosen';
    $c = inside($w, 'good.test:443', 'good.test');
    ok !defined $c->{sock}->alpn_selected, 'a client that offers none has none';
    like $c->ask('GET', '/', ['Host: good.test'])->{body}, qr/^GET/,
        'and speaks HTTP/1.1';
}
{
    my @curl = ('--cacert', $w->ca);
    like curl($w, @curl, 'https://good.test/curl')->{out},
        qr{^GET /curl 0 host=good.test}, 'curl, HTTP/1.1';
    like curl($w, @curl, '-0', 'https://good.test/curl')->{out},
        qr{^GET /curl 0 host=good.test}, 'curl, HTTP/1.0';
    my $file = spew(scratch('up'), 'x' x 2_000_000);
    like curl($w, @curl, '-T', $file, 'https://good.test/up')->{out},
        qr{^PUT /up 2000000 }, 'curl -T, 2 MB';
    my $r = curl($w, @curl, '--tlsv1.2', '--tls-max', '1.2',
        'https://good.test/12');
    like $r->{out}, qr{^GET /12 }, 'TLS 1.2';
    $r = curl($w, @curl, '--tlsv1.3', 'https://good.test/13');
    like $r->{out}, qr{^GET /13 }, 'TLS 1.3';
    $r = curl($w, @curl, '--tlsv1.0', '--tls-max', '1.1', '--ciphers',
        'DEFAULT:@SECLEVEL=0', 'https://good.test/11');
    is $r->{exit}, 35, 'TLS 1.1 is refused';
    $r = curl($w, '--cacert', $w->home . '/.weir/bundle.pem',
        'https://good.test/bundle');
    like $r->{out}, qr{^GET /bundle }, 'bundle.pem has our CA';
}

# ---- the certificate
{
    my $c    = inside($w, 'sub.good.test:443', 'sub.good.test');
    my $leaf = leaf($c);
    my $now  = time;
    like $leaf->{names}, qr/\bDNS:sub\.good\.test\b/, 'names what was asked';
    like $leaf->{names}, qr/DNS:\*\.good\.test/, 'and the origin\'s wildcard';
    like $leaf->{names}, qr/DNS:good\.test\b/, 'and its other names';
    cmp_ok $leaf->{not_before}, '<', $now - 3600, 'is backdated';
    cmp_ok $leaf->{not_after} - $leaf->{not_before}, '>', 44 * 86400,
        'lives for 45 days:';
    cmp_ok $leaf->{not_after} - $leaf->{not_before}, '<', 50 * 86400,
        'not much more, not much less';
    like $leaf->{text}, qr/NIST CURVE: P-256/, 'P-256';
    like $leaf->{text}, qr/ecdsa-with-SHA256/, 'signed by ECDSA, SHA-256';
    like $leaf->{text}, qr/Extended Key Usage:\s*\n\s*TLS Web Server Auth/,
        'for servers';
    like $leaf->{text}, qr/Key Usage:(?: critical)?\s*\n\s*Digital Signature/,
        'to sign';
    like $leaf->{text}, qr/CA:FALSE/, 'no CA';
    like $leaf->{text}, qr/Subject Key Identifier/, 'with an SKI';
    my ($aki) = $leaf->{text} =~
        /Authority Key Identifier:\s*\n\s*(?:keyid:)?([0-9A-F:]+)/;
    my $ca = run([ qw(openssl x509 -noout -text -in), $w->ca ])->{out};
    my ($ski) = $ca =~ /Subject Key Identifier:\s*\n\s*([0-9A-F:]+)/;
    ok $aki && $aki eq $ski, 'whose AKI is our CA\'s SKI';
    my ($serial) = $leaf->{text} =~ /Serial Number:\s*(?:\n\s*)?([0-9a-f:]+)/;
    cmp_ok length($serial =~ s/://gr), '>=', 16, 'with a long serial';
    my $again = leaf(inside($w, 'sub.good.test:443', 'sub.good.test'));
    is $again->{serial}, $leaf->{serial}, 'a second client sees the same';
    my $other = leaf(inside($w, 'new.good.test:443', 'new.good.test'));
    isnt $other->{serial}, $leaf->{serial}, 'another name has its own';
}
{
    my $c = inside($w, '127.0.0.1:' . $o->port, '', name => '127.0.0.1',
        SSL_verifycn_name => '127.0.0.1');
    like leaf($c)->{text}, qr/IP Address:127\.0\.0\.1/,
        'without an SNI: the address of the CONNECT';
    is $c->ask('GET', '/ip', [ 'Host: 127.0.0.1:' . $o->port ])->{status}, 200,
        'which is served';
}
SKIP: {
    my $six = eval { origin(\&say_what, host => '::1', tls => $certs->{good}) }
        or skip 'this machine has no IPv6', 2;
    my $c = inside($w, '[::1]:' . $six->port, '', name => '::1',
        SSL_verifycn_name => '::1');
    like leaf($c)->{text}, qr/IP Address:0:0:0:0:0:0:0:1/,
        'an IPv6 address is one in the certificate';
    is $c->ask('GET', '/ip', [ 'Host: [::1]:' . $six->port ])->{status}, 200,
        'and served';
}
{
    my $c = inside($w, '127.0.0.1:' . $o->port, 'good.test');
    like leaf($c)->{names}, qr/DNS:good\.test/, 'the SNI goes before CONNECT';
    like $c->ask('GET', '/', ['Host: good.test'])->{body}, qr/sni=good\.test/,
        'and on to the origin';
}
{
    my $c = inside($w, 'xn--bcher-kva.good.test:443', 'xn--bcher-kva.good.test');
    like leaf($c)->{names}, qr/DNS:xn--bcher-kva\.good\.test/,
        'an internationalised name in its A-label form';
    my $long = 'a23456789.b23456789.c23456789.d23456789.e23456789.'
        . 'f23456789.g23456789.good.test';
    $c = inside($w, "$long:443", $long);
    like leaf($c)->{names}, qr/DNS:\Q$long\E/, 'a name longer than 64 bytes';
    my ($cn) = leaf($c)->{text} =~ /Subject:.*CN\s*=\s*(\S*)/;
    cmp_ok length($cn // ''), '<=', 64, 'has no CN longer than that';
}
{ # made once, however many ask at the same time
    my @pids;
    my $dir = scratch('serials', 1);
    for my $n (1 .. 16) {
        my $pid = fork // die;
        if ($pid == 0) {
            eval {
                my $c = inside($w, 'many.good.test:443', 'many.good.test');
                spew("$dir/$n", CERT_asHash($c->{sock}->peer_certificate)
                        ->{serial});
                1;
            } or spew("$dir/$n", $@);
            POSIX::_exit(0);
        }
        push @pids, $pid;
    }
    waitpid $_, 0 for @pids;
    my %serials = map { slurp("$dir/$_") => 1 } 1 .. 16;
    is scalar(keys %serials), 1, '16 clients at once see one certificate'
        or diag explain \%serials;
}
{ # session tickets
    my $ticket = scratch('ticket');
    my @s_client = (qw(openssl s_client -proxy), $w->addr, qw(-connect
        good.test:443 -servername good.test -verify_return_error -CAfile),
        $w->ca);
    my $in = spew(scratch('in'),
        "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
    for my $v ('-tls1_3', '-tls1_2') {
        unlink $ticket;
        my $first = run([ @s_client, $v, '-ign_eof', '-sess_out', $ticket ],
            in => $in);
        like $first->{out}, qr/^New, /m, "$v: the first handshake is a new one";
        my $second = run([ @s_client, $v, '-ign_eof', '-sess_in', $ticket ],
            in => $in);
        like $second->{out}, qr/^Reused, /m, "$v: the second resumes it";
        like $second->{out}, qr/GET \/ 0/, "$v: and works";
    }
}
{ # the origin is remembered, its connection used again
    my $before = $o->n_accepted;
    for (1 .. 5) {
        my $c = inside($w, 'good.test:443', 'good.test',
            alpn => ['http/1.1']);
        $c->ask('GET', '/', ['Host: good.test']);
        $c->close;
    }
    cmp_ok $o->n_accepted - $before, '<=', 2,
        'five clients do not cost five connections to the origin';
}

# ---- what is in a tunnel but not TLS
{
    my $plain = origin(sub ($c) {
        my $r = $c->get_request;
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
                . (defined field($r, 'via') ? 'via' : 'raw'));
    });
    my $c = $w->client;
    $c->connect($plain->addr);
    is $c->ask('GET', '/x', [ 'Host: ' . $plain->addr ])->{body}, 'via',
        'plain HTTP in a tunnel is proxied as HTTP';
    my $l = listener();
    my $v = Weir->start(home => $w->home, set => ['intercept.sniff_ms=200']);
    $c = $v->client;
    $c->put("CONNECT ${\ $l->addr} HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $l->accept;
    is $c->get_answer(connect => 1)->{status}, 200, 'a client that waits';
    $s->put("220 server speaks first\r\n");
    is $c->get(25), "220 server speaks first\r\n",
        'hears a server that speaks first';
    $c->put("HELO\r\n");
    is $s->get(6), "HELO\r\n", 'and answers, opaque';
    $c = $w->client;
    $c->put("CONNECT ${\ $l->addr} HTTP/1.1\r\nHost: x\r\n\r\n");
    $s = $l->accept;
    $c->get_answer(connect => 1);
    $c->put("\0\1\2\3 something else");
    is $s->get(19), "\0\1\2\3 something else",
        'what is neither TLS nor HTTP is opaque';
    for my $part ("\x16", 'GE') { # could still become either
        $c = $v->client;
        $c->put("CONNECT ${\ $l->addr} HTTP/1.1\r\nHost: x\r\n\r\n$part");
        $s = $l->accept;
        $c->get_answer(connect => 1);
        is $s->get(length $part), $part, 'a beginning that goes no further'
            . ' is opaque after sniff_ms';
    }
    $_->close for $c, $s;
    $v->stop;
}
{ # a ClientHello in many pieces
    my $c = $w->client;
    $c->connect('good.test:443');
    my $l    = listener();
    my $pid = fork // die;
    if ($pid == 0) { # somebody else makes the hello; we carry it by the byte
        my $t = Weir::Wire->dial('127.0.0.1', $l->port);
        my $good = eval {
            $t->tls_client(sni => 'good.test', ca => $w->ca)
                && $t->ask('GET', '/slow', ['Host: good.test'])->{body};
        };
        POSIX::_exit(($good // '') =~ m{^GET /slow} ? 0 : 1);
    }
    my $t = $l->accept;
    my $first = 1;
    my %other = (fileno $c->{sock} => $t, fileno $t->{sock} => $c);
    my $open  = 1;
    while ($open) {
        my $set = '';
        vec($set, $_, 1) = 1 for keys %other;
        select($set, undef, undef, Weir::LIMIT) > 0 or last;
        for my $from ($c, $t) {
            vec($set, fileno $from->{sock}, 1) or next;
            my $data = $from->get_some;
            my $to   = $from == $c ? $t : $c;
            if ($data eq '') {
                $open = 0;
            } elsif ($from == $t && $first) {
                $to->put($_) for split //, $data;
                $first = 0;
            } else {
                $to->put($data);
            }
        }
    }
    waitpid $pid, 0;
    is $?, 0, 'a ClientHello byte by byte';
}

# ---- who is intercepted
sub issuer($via, $host, $port)
{
    my $c = $via->client;
    $c->connect("$host:$port");
    $c->tls_client(sni => $host =~ /^[\d.]+$/ ? '' : $host)
        or die "TLS to $host: $c->{error}\n";
    return CERT_asHash($c->{sock}->peer_certificate)->{issuer}{commonName};
}
my $theirs = 'test authority';
for my $case (
    [ 'enable = no', ['intercept.enable=no'], 'good.test', 443, 0 ],
    [ 'enable = yes', ['intercept.enable=yes'], 'good.test', 443, 1 ],
    [ 'except a name', ['intercept.except=good.test'], 'good.test', 443, 0 ],
    [ 'except another', ['intercept.except=bad.test'], 'good.test', 443, 1 ],
    [ 'except a glob', ['intercept.except=*.good.test'], 'sub.good.test', 443,
        0 ],
    [ 'except a glob that does not match', ['intercept.except=*.good.test'],
        'good.test', 443, 1 ],
    [ 'except a suffix', ['intercept.except=.good.test'], 'sub.good.test',
        443, 0 ],
    [ 'except a block', ['intercept.except=127.0.0.0/8'], '127.0.0.1',
        $o->port, 0 ],
    [ 'except a port', [ 'intercept.except=*:' . $o->port ], '127.0.0.1',
        $o->port, 0 ],
    [ 'except a port, another', ['intercept.except=*:1'], '127.0.0.1',
        $o->port, 1 ],
    [ 'only a name', ['intercept.only=good.test'], 'good.test', 443, 1 ],
    [ 'only another', ['intercept.only=bad.test'], 'good.test', 443, 0 ],
    [ 'a name that GnuTLS refuses', [], 'under_score.good.test', 443, 0 ],
    [ 'only and except', [ 'intercept.only=.good.test',
        'intercept.except=except.good.test' ], 'except.good.test', 443, 0 ],
) {
    my ($name, $set, $host, $port, $ours) = @$case;
    my $v = Weir->start(home => $w->home, set => [ @here, @$set,
        "upstream.upstream_ca=$certs->{ca}{cert}" ]);
    my $who = issuer($v, $host, $port);
    ok $ours ? $who ne $theirs : $who eq $theirs,
        "$name: " . ($ours ? 'intercepted' : 'let through') or diag $who;
    $v->stop;
}

# ---- a proxy behind the proxy: what CONNECT says is for that one
{
    my $next = sub ($c) {
        while (my $r = $c->get_request) {
            $c->put("HTTP/1.1 418 $r->{method} $r->{target}\r\n"
                    . "Content-Length: 0\r\n\r\n");
        }
    };
    my $v = Weir->start(home => $w->home, set => [ @here,
        "upstream.upstream_ca=$certs->{ca}{cert}" ]);
    my $tls   = origin($next, tls => $certs->{good});
    my $plain = origin($next);
    for my $to ($plain, $tls) {
        my $name = $to == $tls ? 'TLS' : 'plain';
        my $c    = $v->client;
        $c->connect($to->addr =~ s/127\.0\.0\.1/localhost/r);
        $c->tls_client(sni => 'localhost') if $to == $tls;
        for (1 .. 2) {
            $c->put("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n");
            is $c->get_answer->{reason}, 'CONNECT a.test:443',
                "$name: the next proxy gets it";
        }
        $c = $v->client;
        $c->connect($to->addr =~ s/127\.0\.0\.1/localhost/r);
        $c->tls_client(sni => 'localhost') if $to == $tls;
        $c->put("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        is $c->get_answer->{status}, 418, "$name: a request to it";
        $c->put("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n");
        is $c->get_answer->{status}, 501, "$name: behind that it is refused";
    }
    $v->stop;
}

# ---- an origin whose certificate is no good
for my $case (
    [ expired => qr/expired/i ],
    [ early   => qr/not valid yet|not yet valid/i ],
    [ wrong   => qr/another host|host ?name|wrong.*(?:host|name)/i ],
    [ self    => qr/self-signed/i ],
    [ unknown => qr/unknown CA|unknown authority|not trusted/i ],
) {
    my ($kind, $reason) = @$case;
    my $bad = origin(\&say_what, tls => $certs->{$kind});
    my @set = ('resolve.good.test=127.0.0.1:' . $bad->port,
        "upstream.upstream_ca=$certs->{ca}{cert}");
    my $v = Weir->start(home => $w->home, set => \@set);
    my $r = curl($v, '--cacert', $v->ca, '-i', 'https://good.test/');
    is $r->{code}, 502, "$kind: 502 inside a good TLS of ours"
        or diag explain $r;
    like $r->{out}, $reason, "$kind: the reason";
    like $r->{out}, qr/insecure\s*=.*good\.test/i, "$kind: and what to set";
    like $r->{out}, qr/^Proxy-Status: .*error=tls_certificate_error/mi,
        "$kind: Proxy-Status";
    unlike $bad->notes, qr{GET /}, "$kind: the origin was asked nothing";
    $v->stop;
    $v = Weir->start(home => $w->home, set => [ @set,
        'upstream.insecure=good.test' ]);
    $r = curl($v, '--cacert', $v->ca, 'https://good.test/x');
    like $r->{out}, qr{^GET /x}, "$kind: insecure lets it through";
    $v->stop;
    $v = Weir->start(home => $w->home, set => [ @set,
        'upstream.insecure=other.test' ]);
    $r = curl($v, '--cacert', $v->ca, 'https://good.test/x');
    is $r->{code}, 502, "$kind: insecure for another host does not";
    $v->stop;
    $bad->stop;
}
{
    my $r = curl($w, '--cacert', $w->ca, '-i',
        'https://127.0.0.1:' . closed_port() . '/');
    is $r->{connect}, 502, 'an origin that is not there: 502 to CONNECT';
    my $dumb = origin(sub ($c) {
        $c->get_some;
        $c->put("this is not TLS\r\n");
    });
    $r = curl($w, '--cacert', $w->ca, '-i', 'https://' . $dumb->addr . '/');
    is $r->{code}, 502, 'an origin that speaks no TLS: 502 inside'
        or diag explain $r;
    like $r->{out}, qr/TLS/, 'that says TLS';
}
{ # its time is not the client's
    my $mute = listener();
    my $v = Weir->start(home => $w->home, set => [ 'proxy.head_s=1',
        'upstream.connect_s=2' ]);
    my $r = curl($v, '--cacert', $v->ca, 'https://' . $mute->addr . '/');
    is $r->{code}, 504, 'an origin that never answers its TLS: 504 inside'
        or diag explain $r;
    $v->stop;
}

# ---- a client that does not trust us
{
    my $r = curl($w, 'https://good.test/');
    is $r->{exit}, 60, 'curl without our CA refuses us';
    my $line = $w->wait_log(qr/except/);
    like $line, qr/good\.test/, 'the log says which line would let it through';
    my @lines = grep { /except/ } split /\n/, $w->log;
    is scalar(@lines), 1, 'once';
}

# ---- TLS to the proxy itself
{
    my $url  = 'https://localhost:' . $w->port;
    my @curl = ('-x', $url, '--proxy-cacert', $w->ca, '--cacert', $w->ca);
    my $plain = origin(sub ($c) {
        while ($c->get_request) {
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
        }
    });
    my $r = curl(undef, @curl, 'http://' . $plain->addr . '/');
    is $r->{out}, 'plain', 'curl, https:// proxy: plain HTTP' or diag $r->{err};
    $r = curl(undef, @curl, '-p', 'http://' . $plain->addr . '/');
    is $r->{out}, 'plain', 'curl, https:// proxy: a tunnel' or diag $r->{err};
    $r = curl(undef, @curl, 'https://good.test/inner');
    like $r->{out}, qr{^GET /inner}, 'curl, https:// proxy: TLS in TLS'
        or diag $r->{err};
    $r = curl(undef, @curl, 'https://weir.invalid/ca.pem');
    is $r->{out}, slurp($w->ca), 'curl, https:// proxy: its own pages, in TLS'
        or diag $r->{err};
    $r = curl(undef, @curl, '-p', 'http://weir.invalid/ca.pem');
    is $r->{out}, slurp($w->ca), 'curl, https:// proxy: its own pages, plain'
        or diag $r->{err};
    $r = curl(undef, '-x', 'https://127.0.0.1:' . $w->port, '--proxy-cacert',
        $w->ca, 'http://' . $plain->addr . '/');
    is $r->{out}, 'plain', 'curl, https:// proxy by address' or diag $r->{err};
    $r = curl(undef, '--cacert', $w->ca, "$url/");
    is $r->{code}, 200, 'weir\'s own page through TLS' or diag $r->{err};
}

# ---- TLS to the port that is meant for somebody else (a name pointed at us)
{
    my $r = curl(undef, '--cacert', $w->ca, '--connect-to',
        'good.test:443:127.0.0.1:' . $w->port, 'https://good.test/direct');
    like $r->{out}, qr{^GET /direct 0 host=good\.test sni=good\.test},
        'TLS straight to us, for somebody else: interception'
        or diag explain $r;
}

# ---- keys for a developer's network analyser
{
    my $file = scratch('keys');
    my $v = Weir->start(home => $w->home, env => { SSLKEYLOGFILE => $file },
        set => [ @here, "upstream.upstream_ca=$certs->{ca}{cert}" ]);
    my $c = inside($v, 'good.test:443', 'good.test');
    $c->ask('GET', '/', ['Host: good.test']);
    $c->close;
    my %randoms = map { $_ => 1 }
        slurp($file) =~ /^\w+ ([0-9a-f]{64}) [0-9a-f]+$/mg;
    is scalar(keys %randoms), 2, 'SSLKEYLOGFILE has the secrets of both legs';
    is sprintf('%o', (stat $file)[2] & 0777), '600', 'for us alone';
    $v->stop;
}

$w->stop;
done_testing;
