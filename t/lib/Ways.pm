# Ways.pm - other people's proxies, and their clients and servers of HTTP/3,
# started for a test on a free port.
#
# Each constructor answers a process with {port}; what it logs is in {log}.
# The programs are Debian's squid, tinyproxy, microsocks, dante, nghttpx, caddy,
# and those of ngtcp2.

package Ways;
use v5.36;
use Exporter 'import';
use File::Temp ();
use IO::Socket::IP;
use Socket qw(PF_INET SOCK_STREAM INADDR_LOOPBACK pack_sockaddr_in
    unpack_sockaddr_in);
use Weir;

our @EXPORT = qw(squid tinyproxy microsocks dante nghttpx told scripted black_hole
    gtlsserver gtlsclient caddy free_udp_port);

# Wait until somebody listens there.
sub up($name, $p)
{
    wait_for("$name to listen", sub {
        die "$name has ended: ", slurp($p->{err}), slurp($p->{out})
            if !kill 0, $p->{pid};
        return IO::Socket::IP->new(PeerHost => '127.0.0.1',
            PeerPort => $p->{port}) ? 1 : 0;
    });
    return $p;
}

# %o: user, password (Basic); deny => a host that gets 403.
sub squid(%o)
{
    # squid gives root up, and the test's own directory is for its user alone.
    my $dir  = File::Temp->newdir('weir-squid-XXXXXX', TMPDIR => 1);
    my $port = free_port();
    my @auth;
    chmod 0777, "$dir";
    if ($o{user}) {
        my $hash = run(['openssl', 'passwd', '-apr1', $o{password}])->{out};
        spew("$dir/users", "$o{user}:$hash");
        chmod 0644, "$dir/users";
        @auth = ("auth_param basic program /usr/lib/squid/basic_ncsa_auth $dir/users",
            'auth_param basic children 1',
            'auth_param basic realm squid',
            'acl known proxy_auth REQUIRED');
    }
    spew("$dir/conf", join "\n", "http_port 127.0.0.1:$port", @auth,
        ($o{deny} ? ("acl bad dstdomain $o{deny}", 'http_access deny bad') : ()),
        'http_access allow ' . ($o{user} ? 'known' : 'all'),
        'http_access deny all', 'cache deny all', "pid_filename $dir/pid",
        "access_log stdio:$dir/access", "cache_log $dir/cache.log",
        "coredump_dir $dir", 'shutdown_lifetime 0 seconds', 'via on',
        'max_filedescriptors 1024', 'netdb_filename none',
        'pinger_enable off', '');
    my $p = start_process(['squid', '-N', '-f', "$dir/conf"], cd => "$dir");
    return up('squid', { %$p, port => $port, log => "$dir/access",
        dir => $dir });
}

sub tinyproxy(%o)
{
    my $dir  = scratch('tinyproxy', 1);
    my $port = free_port();
    spew("$dir/conf", join "\n", "Port $port", 'Listen 127.0.0.1',
        'Timeout 600', 'MaxClients 50', "LogFile \"$dir/log\"", 'LogLevel Connect',
        ($o{user} ? "BasicAuth $o{user} $o{password}" : ()), '');
    my $p = start_process(['tinyproxy', '-d', '-c', "$dir/conf"], cd => $dir);
    return up('tinyproxy', { %$p, port => $port, log => "$dir/log" });
}

# SOCKS 5, without users.
sub microsocks(%o)
{
    my $port = free_port();
    my $p = start_process(['microsocks', '-i', '127.0.0.1', '-p', $port]);
    return up('microsocks', { %$p, port => $port, log => $p->{err} });
}

# The same by another; an empty list where it is not installed: not every suite
# has it.
sub dante(%o)
{
    my ($program) = grep { -x } '/usr/sbin/danted' or return;
    my $dir  = scratch('dante', 1);
    my $port = free_port();
    my @users = $> ? () : ('user.privileged: root', 'user.unprivileged: nobody');
    spew("$dir/conf", join "\n", 'logoutput: stderr',
        "internal: 127.0.0.1 port = $port", 'external: 127.0.0.1',
        'clientmethod: none', 'socksmethod: none', @users,
        map({ "$_ pass { from: 127.0.0.1/32 to: 0.0.0.0/0 }" } qw(client socks)),
        '');
    my $p = start_process([$program, '-f', "$dir/conf", '-p', "$dir/pid"]);
    return up('dante', { %$p, port => $port, log => $p->{err} });
}

# An https:// proxy: TLS in front of an HTTP/1 proxy at $back.
sub nghttpx($back, @more)
{
    my $dir  = scratch('nghttpx', 1);
    my $port = free_port();
    my $pem  = certs()->{good};
    my $p = start_process(['nghttpx', "--frontend=127.0.0.1,$port",
        "--backend=127.0.0.1,$back", '--http2-proxy', '--workers=1',
        "--accesslog-file=$dir/log", "--errorlog-file=$dir/errors",
        '--conf=/dev/null', @more, $pem->{key}, $pem->{cert}], cd => $dir);
    return up('nghttpx', { %$p, port => $port, log => "$dir/log" });
}

# ---- HTTP/3 -------------------------------------------------------------------------

# A UDP port that was free a moment ago, and whose TCP twin was.
sub free_udp_port()
{
    while (1) {
        my $port = free_port();
        return $port if IO::Socket::IP->new(LocalHost => '127.0.0.1',
            LocalPort => $port, Proto => 'udp',
            Type => Socket::SOCK_DGRAM());
    }
}

# Wait until somebody has bound that UDP port.
sub up_udp($name, $p)
{
    my $hex = sprintf ':%04X ', $p->{port};
    wait_for("$name to bind", sub {
        die "$name has ended: ", slurp($p->{err}), slurp($p->{out})
            if !kill 0, $p->{pid};
        return slurp('/proc/net/udp') =~ /$hex/;
    });
    return $p;
}

# Files of a directory by HTTP/3.  %o: cert (of certs), args.
sub gtlsserver($root, %o)
{
    my $port = free_udp_port();
    my $pem  = $o{cert} // certs()->{good};
    my $p = start_process([ 'gtlsserver', '-q', '--no-quic-dump',
        '--no-http-dump', '-d', $root, ($o{args} // [])->@*, '127.0.0.1',
        $port, $pem->{key}, $pem->{cert} ]);
    return up_udp('gtlsserver', { %$p, port => $port, log => $p->{err} });
}

# Requests in HTTP/3 to $name:$port (the name is the SNI, and this machine), to
# its end: { out, err, dir }; dir holds what was downloaded.  gtlsclient's exit
# code says nothing.
sub gtlsclient($port, $name, $urls, @args)
{
    my $dir   = scratch('gtlsclient', 1);
    my $hosts = spew("$dir/.hosts", "127.0.0.1 $name\n");
    my $r = run([ 'gtlsclient', '-q', '--no-quic-dump', '--no-http-dump',
        '--exit-on-all-streams-close', "--download=$dir", @args, $name, $port,
        @$urls ], cd => $dir, env => { LD_PRELOAD => 'libnss_wrapper.so',
            NSS_WRAPPER_HOSTS => $hosts });
    return { %$r, dir => $dir };
}

# Files of a directory by HTTP/1.1, 2 and 3 on one port, for %o: name.
sub caddy($root, %o)
{
    my $dir  = scratch('caddy', 1);
    my $port = free_udp_port();
    my $pem  = certs()->{good};
    my $name = $o{name} // 'good.test';
    spew("$dir/Caddyfile", <<"END");
{
    admin off
    auto_https off
    servers {
        protocols h1 h2 h3
    }
    log {
        output file $dir/errors
    }
}
https://$name:$port {
    bind 127.0.0.1
    tls $pem->{cert} $pem->{key}
    log {
        output file $dir/log
    }
    root * $root
    file_server
}
END
    my $p = start_process([ 'caddy', 'run', '--adapter', 'caddyfile',
        '--config', "$dir/Caddyfile" ], cd => $dir, env => { HOME => $dir });
    return up_udp('caddy', { %$p, port => $port, log => "$dir/log" });
}

# A port of this machine that neither accepts nor refuses: its queue is full,
# and the kernel drops what else comes.  The sockets have to be kept.
sub black_hole()
{
    socket my $l, PF_INET, SOCK_STREAM, 0 or die "socket: $!";
    bind $l, pack_sockaddr_in(0, INADDR_LOOPBACK) or die "bind: $!";
    listen $l, 0 or die "listen: $!";
    my ($port) = unpack_sockaddr_in(getsockname $l);
    my @full = map {
        IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port,
            Timeout => 0.2)
    } 1 .. 3;
    return ($port, $l, @full);
}

# What a proxy's log has by now, once it has $re.
sub told($p, $re)
{
    return wait_for("$p->{name} to log $re", sub {
        my ($hit) = grep { /$re/ } split /\n/, slurp($p->{log});
        return $hit;
    });
}

# A parent of our own: $serve->($wire, $head) for each request head it reads.
sub scripted($serve, %o)
{
    return origin(sub ($c) {
        while ((my $head = $c->get_head) ne '') {
            $c->note($head =~ s/\r\n/|/gr);
            $serve->($c, $head);
            last if $c->how ne 'open';
        }
    }, %o);
}

1;
