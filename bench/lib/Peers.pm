# Peers.pm - weir and the programs it is measured against: how each is started.
#
# peer(NAME) starts it on first use and answers { pid, port, ... } or undef
# with the reason in peer_missing().  Each gets the settings that make it fast
# at the job: no access log, no cache, all processors.  Their files stand in
# the scratch directory.
package Peers;
use v5.36;
use Exporter 'import';
use Proc;

our @EXPORT = qw(peer peer_missing peer_end setup_origin weir_new
    origin_port ca_file h2_peers);

my (%running, %missing, %origin);
my $weir;

sub spew($name, $text)
{
    my $file = scratch($name);
    open my $out, '>', $file or die "$file: $!\n";
    print $out $text;
    close $out or die "$file: $!\n";
    return $file;
}

sub shell(@command)
{
    my ($text, $status) = proc_run(30, @command);
    die "@command failed: " . proc_log('load') if $status // 1;
}

sub which($program)
{
    for (split(/:/, $ENV{PATH}), '/usr/sbin') {
        return "$_/$program" if -x "$_/$program";
    }
    return;
}

sub ca_file()     { return scratch('ca.pem') }
sub origin_port($what) { return $origin{$what} }

# ---- the certificates and the origin ----------------------------------------

sub make_ca()
{
    my ($ca, $key) = (ca_file(), scratch('ca-key.pem'));
    my ($leaf, $leaf_key) = (scratch('leaf.pem'), scratch('leaf-key.pem'));
    my @new = (qw(openssl req -x509 -nodes -days 30 -newkey ec -pkeyopt
        ec_paramgen_curve:P-256));
    shell(@new, '-keyout', $key, '-out', $ca, '-subj', '/CN=bench CA');
    shell(@new, '-keyout', $leaf_key, '-out', $leaf, '-subj', '/CN=known.test',
        '-addext', 'subjectAltName=DNS:known.test', '-CA', $ca, '-CAkey', $key,
        '-addext', 'basicConstraints=critical,CA:FALSE');
    shell('sh', '-c', "cat $leaf $leaf_key >" . scratch('leaf-both.pem'));
    shell('sh', '-c', "cat $ca $key >" . scratch('ca-both.pem'));
}

sub setup_origin($program, $weir_program)
{
    $weir = $weir_program;
    make_ca();
    my ($pid, $from, $to) =
        proc_pipe('origin', $program, ca_file(), scratch('ca-key.pem'));
    my $line = <$from> // die 'origin: ' . proc_log('origin');
    %origin = ($line =~ /(\w+)=(\d+)/g, pipe => $to, pid => $pid);
}

# ---- each one ---------------------------------------------------------------

# A weir of its own, with its own home.
sub weir_new($name, @sets)
{
    die "$weir: not there\n" if !-x $weir;
    my $port = free_port();
    my $home = scratch("$name-home");
    my $ini = spew("$name.ini", '');
    mkdir $home;
    my $pid = proc_start($name, $weir, '-q', '-c', $ini,
        map { ('--set', $_) } "proxy.listen=127.0.0.1:$port",
        "intercept.dir=$home", 'upstream.upstream_ca=' . ca_file(),
        'resolve.known.test=127.0.0.1', @sets);
    return { pid => $pid, port => $port, name => $name };
}

sub start_squid($program)
{
    my ($port, $tls) = (free_port(), free_port());
    my ($db, $ca) = (scratch('squid_db'), scratch('ca-both.pem'));
    my $gen = '/usr/lib/squid/security_file_certgen';
    shell($gen, '-c', '-s', $db, '-M', '32MB');
    if ($> == 0) {    # it works as the user proxy then
        shell('chown', '-R', 'proxy', $db);
        chmod 0644, $ca;
    }
    my $file = spew('squid.conf', <<"END");
http_port 127.0.0.1:$port
http_port 127.0.0.1:$tls ssl-bump tls-cert=$ca \\
    generate-host-certificates=on dynamic_cert_mem_cache_size=32MB
sslcrtd_program $gen -s $db -M 32MB
sslcrtd_children 2 startup=2
acl at_hello at_step SslBump1
ssl_bump stare at_hello
ssl_bump bump all
tls_outgoing_options cafile=${\ca_file()}
hosts_file ${\scratch('hosts')}
http_access allow all
cache deny all
access_log none
cache_log ${\scratch('squid.log')}
cache_store_log none
pid_filename none
pinger_enable off
netdb_filename none
shutdown_lifetime 0 seconds
client_idle_pconn_timeout 1 hour
coredump_dir none
END
    chmod 0666, spew('squid.log', '');
    spew('hosts', "127.0.0.1 known.test\n");
    return { pid => proc_start('squid', $program, '-N', '-f', $file),
        port => $port, tls => $tls };
}

sub start_haproxy($program)
{
    my ($tcp, $http) = (free_port(), free_port());
    my $file = spew('haproxy.cfg', <<"END");
global
    maxconn 6000
defaults
    timeout connect 10s
    timeout client 300s
    timeout server 300s
listen tcp
    mode tcp
    option splice-auto
    bind 127.0.0.1:$tcp
    server origin 127.0.0.1:$origin{raw}
listen http
    mode http
    bind 127.0.0.1:$http
    option splice-auto
    http-reuse always
    server origin 127.0.0.1:$origin{http}
END
    return { pid => proc_start('haproxy', $program, '-db', '-f', $file),
        port => $tcp, http => $http };
}

sub start_tinyproxy($program)
{
    my $port = free_port();
    my $file = spew('tinyproxy.conf', <<"END");
Port $port
Listen 127.0.0.1
Timeout 600
MaxClients 8000
Allow 127.0.0.1
LogLevel Critical
LogFile "${\scratch('tinyproxy.log')}"
END
    return { pid => proc_start('tinyproxy', $program, '-d', '-c', $file),
        port => $port };
}

sub start_danted($program)
{
    my $port = free_port();
    my $users = $> ? '' : "user.privileged: root\nuser.unprivileged: nobody";
    my $file = spew('danted.conf', <<"END");
logoutput: stderr
internal: 127.0.0.1 port = $port
external: 127.0.0.1
clientmethod: none
socksmethod: none
$users
client pass { from: 127.0.0.1/32 to: 0.0.0.0/0 log: error }
socks pass { from: 127.0.0.1/32 to: 0.0.0.0/0 log: error }
END
    return { pid => proc_start('danted', $program, '-f', $file, '-p',
            scratch('danted.pid')), port => $port };
}

sub mitm($name, $program, @more)
{
    my $port = free_port();
    return { port => $port, pid => proc_start($name, $program, '-q',
            '--listen-host', '127.0.0.1', '-p', $port,
            '--set', 'confdir=' . scratch($name),
            '--set', 'ssl_verify_upstream_trusted_ca=' . ca_file(), @more) };
}

sub start_sslsplit($program)
{
    my $port = free_port();
    mkdir scratch('sslsplit');
    return { port => $port, pid => proc_start('sslsplit', $program,
            '-c', ca_file(), '-k', scratch('ca-key.pem'),
            '-K', scratch('leaf-key.pem'), $> == 0 ? ('-u', 'root') : (),
            'ssl', '127.0.0.1', $port, '127.0.0.1', $origin{tls}) };
}

sub start_nginx($program)
{
    my $port = free_port();
    my $temp = join '', map { "    ${_}_temp_path ${\scratch('nginx')}/$_;\n" }
        qw(client_body proxy fastcgi uwsgi scgi);
    mkdir scratch('nginx');
    my $user = $> == 0 ? 'user root;' : '';
    my $file = spew('nginx.conf', <<"END");
daemon off;
$user
worker_processes auto;
pid ${\scratch('nginx.pid')};
error_log stderr error;
events { worker_connections 4000; }
http {
    access_log off;
    keepalive_requests 1000000;
$temp
    upstream origin {
        server 127.0.0.1:$origin{http};
        keepalive 64;
        keepalive_requests 1000000;
    }
    server {
        listen 127.0.0.1:$port ssl;
        ssl_certificate ${\scratch('leaf.pem')};
        ssl_certificate_key ${\scratch('leaf-key.pem')};
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
    }
}
END
    return { pid => proc_start('nginx', $program, '-c', $file), port => $port };
}

sub start_hitch($program)
{
    my $port = free_port();
    my $user = $> == 0 ? 'user = "nobody"' : '';
    chmod 0644, scratch('leaf-both.pem');
    my $file = spew('hitch.conf', <<"END");
frontend = "[127.0.0.1]:$port"
backend = "[127.0.0.1]:$origin{http}"
pem-file = "${\scratch('leaf-both.pem')}"
workers = 2
daemon = off
syslog = off
log-level = 0
$user
END
    return { pid => proc_start('hitch', $program, "--config=$file"),
        port => $port };
}

sub start_nghttpx($program)
{
    my $port = free_port();
    my $file = spew('nghttpx.conf', '');
    return { port => $port, pid => proc_start('nghttpx', $program,
            "--conf=$file", "--frontend=127.0.0.1,$port",
            "--backend=127.0.0.1,$origin{http}", '--workers=2', '--no-ocsp',
            '--accesslog-file=/dev/null', '--npn-list=http/1.1',
            '--no-server-rewrite', '--log-level=ERROR',
            scratch('leaf-key.pem'), scratch('leaf.pem')) };
}

# As a forwarder of HTTP/2, to an origin that speaks HTTP/2 or HTTP/1.
sub start_nghttpx_h2($program, $origin, $version)
{
    my $port = free_port();
    my $proto = $version eq 'h2' ? 'proto=h2;' : '';
    my $file = spew('nghttpx.conf', '');
    return { port => $port, pid => proc_start('nghttpx', $program,
            "--conf=$file", "--frontend=127.0.0.1,$port", '--insecure',
            "--backend=127.0.0.1,$origin;;${proto}tls;sni=known.test",
            '--workers=2', '--no-ocsp', '--accesslog-file=/dev/null',
            '--no-server-rewrite', '--log-level=ERROR',
            scratch('leaf-key.pem'), scratch('leaf.pem')) };
}

# Those for HTTP/2 to one origin, by its port and version.
sub h2_peers($origin, $version)
{
    my @start = (
        ['weir', sub { weir_new("weir-$version", 'intercept.alpn=h2',
            "resolve.known.test=127.0.0.1:$origin") }],
        ['nghttpx', sub { start_nghttpx_h2(which('nghttpx')
            // die("nghttpx is not installed\n"), $origin, $version) }],
        ['mitmproxy', sub { mitm("mitmproxy-$version", which('mitmdump')
            // die("mitmdump is not installed\n"), '--mode',
            "reverse:https://127.0.0.1:$origin", '--ssl-insecure') }],
    );
    my @peers;
    for (@start) {
        my ($name, $start) = @$_;
        my $p = eval { $start->() };
        if ($p && wait_port($p->{pid}, $p->{port})) {
            push @peers, { %$p, name => $name };
        } else {
            $missing{$name} = $p ? 'does not start' : $@ =~ s/\n.*//sr;
            push @peers, { name => $name, missing => 1 };
        }
    }
    return @peers;
}

my %known = (
    squid     => ['squid',     \&start_squid],
    haproxy   => ['haproxy',   \&start_haproxy],
    tinyproxy => ['tinyproxy', \&start_tinyproxy],
    dante     => ['danted',    \&start_danted],
    mitmproxy => ['mitmdump',  sub($p) { mitm('mitmproxy', $p) }],
    'mitmproxy-raw' => ['mitmdump',
        sub($p) { mitm('mitmproxy-raw', $p, '--ignore-hosts', '.*') }],
    sslsplit => ['sslsplit', \&start_sslsplit],
    nginx    => ['nginx',    \&start_nginx],
    hitch    => ['hitch',    \&start_hitch],
    nghttpx  => ['nghttpx',  \&start_nghttpx],
);

sub launch($name)
{
    return weir_new('weir') if $name eq 'weir';
    my ($program, $start) = @{ $known{$name} };
    my $path = which($program) // die "$program is not installed\n";
    return $start->($path);
}

sub peer($name)
{
    return if $missing{$name};
    return $running{$name} if $running{$name};
    my $p = eval { launch($name) };
    if (!$p) {
        $missing{$name} = $@ =~ s/\n.*//sr;
    } elsif (!wait_port($p->{pid}, $p->{port})) {
        proc_end($p->{pid});
        $missing{$name} = 'does not start: ' . proc_log($name) =~ s/\n/ /gr;
    } else {
        $p->{name} = $name;
        return $running{$name} = $p;
    }
    return;
}

sub peer_end($name)
{
    my $p = delete $running{$name} // return;
    proc_end($p->{pid});
}

sub peer_missing()
{
    return \%missing;
}

1;
