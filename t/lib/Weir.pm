# Weir.pm - what the end-to-end tests have in common.
#
# A test starts a weir of its own on a free port, with a home of its own, and
# speaks to it through a Weir::Wire: a socket, plain or TLS, on which every
# wait has a limit.  Origins come in two kinds:
#
#   listener()     a listening socket in the test itself.  The test plays both
#                  client and origin, one step after the other, so that the
#                  order of events is the order of its lines.
#   origin(CODE)   a process of its own that runs CODE for each connection,
#                  for clients that cannot be stepped (curl, a TLS handshake).
#                  note() tells the test, cue() tells the origin.
#
# Nothing here sleeps for a fixed time: wait_for() looks until something is so,
# or dies at the limit.  Whatever was started is ended by its process id and
# reaped when the test ends, however it ends.

package Weir;
use v5.36;
use Errno qw(EEXIST EINTR);
use Exporter 'import';
use Fcntl qw(F_SETFD);
use File::Temp ();
use IO::Socket::IP;
use POSIX qw(:sys_wait_h _exit);
use Socket qw(SOMAXCONN);
use Test::More;
use Time::HiRes qw(time sleep);

our @EXPORT = qw(
    LIMIT wait_for slurp spew scratch run start_process stop_process reap
    listener origin closed_port free_port cue
    field fields authority pem certs weir_run curl curl_h2 have request
    through never_seen
);

use constant LIMIT => $ENV{WEIR_LIMIT} // 30; # s, of every wait

# What a test inherits must not decide where its clients go.
delete @ENV{qw(http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY
    ALL_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE SSLKEYLOGFILE
    XDG_CONFIG_HOME NOTIFY_SOCKET)};
$SIG{PIPE} = 'IGNORE';

my $me  = $$;
my %alive;    # pid => what it is; ended at the end
my $dir = File::Temp->newdir('weir-test-XXXXXX', TMPDIR => 1);
my $n_files = 0;

# ---- waiting, files, processes ------------------------------------------------

# The first true answer of $so; dies after $limit seconds, naming $what.
sub wait_for($what, $so, $limit = LIMIT)
{
    my $until = time + $limit;
    while (1) {
        my $answer = $so->();
        return $answer if $answer;
        die "waited $limit s for $what\n" if time > $until;
        sleep 0.005;
    }
}

sub slurp($file)
{
    open my $in, '<:raw', $file or return '';
    local $/;
    return scalar(<$in>) // '';
}

sub spew($file, $text)
{
    open my $out, '>:raw', $file or die "$file: $!";
    print $out $text;
    close $out or die "$file: $!";
    return $file;
}

# A new name (of a directory, if $make) in the test's own directory.
sub scratch($name = 'file', $make = 0)
{
    my $path = "$dir/$$-" . ++$n_files . "-$name";
    if ($make) {
        mkdir $path, 0700 or die "$path: $!";
    }
    return $path;
}

sub have($program)
{
    return scalar grep { -x "$_/$program" } split(/:/, $ENV{PATH}), '/usr/sbin';
}

# Start a program; its output goes to files.  %o: env, out, err, in, cd.
sub start_process($argv, %o)
{
    $o{out} //= scratch('out');
    $o{err} //= scratch('err');
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        %ENV = (%ENV, ($o{env} // {})->%*);
        delete $ENV{$_} for grep { !defined $ENV{$_} } keys %ENV;
        chdir $o{cd} or _exit(126) if $o{cd};
        open STDIN,  '<', $o{in} // '/dev/null' or _exit(126);
        open STDOUT, '>>', $o{out}              or _exit(126);
        open STDERR, '>>', $o{err}              or _exit(126);
        { no warnings 'exec'; exec { $argv->[0] } @$argv; }
        print STDERR "$argv->[0]: $!\n";
        _exit(127);
    }
    $alive{$pid} = $argv->[0];
    return { pid => $pid, out => $o{out}, err => $o{err}, name => $argv->[0] };
}

# Wait for its end: exit code, or 1000 + the signal that ended it.
sub reap($process, $limit = LIMIT)
{
    my $status;
    wait_for("the end of $process->{name}", sub {
        return 0 if waitpid($process->{pid}, WNOHANG) != $process->{pid};
        $status = $?;
        return 1;
    }, $limit);
    delete $alive{$process->{pid}};
    return $status & 127 ? 1000 + ($status & 127) : $status >> 8;
}

sub stop_process($process, $signal = 'TERM')
{
    return if !$alive{$process->{pid}};
    kill $signal, $process->{pid};
    return reap($process);
}

# Run a program to its end: { exit, out, err }.
sub run($argv, %o)
{
    my $p    = start_process($argv, %o);
    my $exit = eval { reap($p, $o{limit} // LIMIT) };
    if (!defined $exit) {
        kill 'KILL', $p->{pid};
        reap($p);
        $exit = 'limit';
    }
    return { exit => $exit, out => slurp($p->{out}), err => slurp($p->{err}) };
}

END {
    if ($$ == $me) {
        my $code = $?; # waitpid() below would change it
        kill 'TERM', keys %alive;
        for my $pid (keys %alive) {
            my $gone = eval {
                wait_for("$alive{$pid}", sub { waitpid($pid, WNOHANG) }, 5);
            };
            next if $gone;
            kill 'KILL', $pid;
            waitpid $pid, 0;
        }
        $? = $code;
    }
}
$SIG{$_} = sub { exit 1 } for qw(INT TERM HUP);

# ---- weir itself --------------------------------------------------------------

sub binary()
{
    return $ENV{WEIR} // die "WEIR names no program: run the tests by make\n";
}

# Threads of a build under a sanitizer need more than the smallest stack.
sub weir_sets()
{
    return map { ('--set', $_) } split ' ', $ENV{WEIR_SET} // '';
}

# weir to its end, for what it says about its command line.
sub weir_run($args, %o)
{
    my $home = $o{home} // scratch('home', 1);
    return run([binary(), @$args], %o, cd => $o{cd} // $home,
        env => { HOME => $home, ($o{env} // {})->%* });
}

# Start weir and wait until it listens.  %o:
#   set    [ 'section.key=value', ... ]    conf  text of a proxy.ini
#   args   [ '-v', ... ]                   env   { NAME => value }
#   home   a directory that exists         listen  instead of 127.0.0.1:0
sub start($class, %o)
{
    my $home = $o{home} // scratch('home', 1);
    my @argv = (binary(), weir_sets());
    push @argv, '-c', spew("$home/test.ini", $o{conf}) if defined $o{conf};
    push @argv, '--set', 'proxy.listen=' . ($o{listen} // '127.0.0.1:0')
        if ($o{listen} // '') ne 'conf';
    # What lies open must not hold a test up, nor must a client that is slow
    # to speak, on a machine that is busy, be taken for a silent one.
    push @argv, map { ('--set', $_) } 'proxy.grace_s=5',
        'intercept.sniff_ms=9000', ($o{set} // [])->@*;
    push @argv, ($o{args} // [])->@*;
    my $p = start_process(\@argv, cd => $home,
        env => { HOME => $home, ($o{env} // {})->%* });
    my $self = bless { %$p, home => $home }, $class;
    wait_for('weir to listen', sub {
        return 1 if slurp($self->{out}) =~ /listens on (\S+):(\d+)/
            && (($self->{host}, $self->{port}) = ($1, $2));
        return 0 if waitpid($self->{pid}, WNOHANG) != $self->{pid};
        delete $alive{ $self->{pid} };
        die "weir did not start: $?\n", $self->log;
    });
    $self->{fds} = $self->n_fds;
    return $self;
}

sub port($self) { $self->{port} }
sub addr($self) { "127.0.0.1:$self->{port}" }
sub pid($self)  { $self->{pid} }
sub home($self) { $self->{home} }
sub ca($self)   { "$self->{home}/.weir/ca.pem" }
sub log($self)  { slurp($self->{err}) }
sub out($self)  { slurp($self->{out}) }

sub signal($self, $name)
{
    kill $name, $self->{pid} or die "kill: $!";
}

# Wait until the log has what $re describes; the text of the whole line.
sub wait_log($self, $re, $limit = LIMIT)
{
    my $line = eval {
        wait_for("the log line $re", sub {
            my ($hit) = grep { /$re/ } split /\n/, $self->log;
            return $hit;
        }, $limit);
    };
    diag($@, 'the log ends: ', substr $self->log, -3000) if !defined $line;
    return $line // '';
}

sub n_fds($self)
{
    opendir my $d, "/proc/$self->{pid}/fd" or return -1;
    return scalar grep { !/^\.+$/ } readdir $d;
}

# A figure of /proc/PID/status, e.g. Threads or VmRSS.
sub status($self, $name)
{
    return slurp("/proc/$self->{pid}/status") =~ /^\Q$name\E:\s*(\d+)/m
        ? $1 : undef;
}

# End it, and see that it went in order.
sub stop($self, $what = 'weir')
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $code = eval { stop_process($self) };
    my $log  = $self->log;
    my $good = ok(defined $code && $code == 0, "$what ends with 0 after TERM");
    diag('exit ', $code // "never: $@") if !$good;
    my $clean = ok($log !~ /Sanitizer|runtime error:|assertion|Assertion/,
        "$what ends without a report");
    diag($log) if !$good || !$clean;
    return $code;
}

# A wire to weir's port.
sub client($w)
{
    return Weir::Wire->dial($w->{host}, $w->{port});
}

# curl through weir: { exit, code, out, err }.  %o: none, or args first.
our @curl = ('curl');

sub curl($w, @args)
{
    my $head = scratch('curl');
    my @via  = $w ? ('-x', 'http://' . $w->addr) : ();
    my $r = run([@curl, '-q', '-sS', '-m', LIMIT, @via, '-w', "%{stderr}\n\@%{http_code}\@%{http_connect}\@%{http_version}", @args],
        env => { HOME => $dir }, limit => LIMIT + 5);
    if ($r->{err} =~ s/\n\@(\d+)\@(\d+)\@([\d.]*)\z//) {
        @$r{qw(code connect version)} = ($1 + 0, $2 + 0, $3);
    }
    return $r;
}

# The same by a curl that speaks HTTP/2 to a proxy, 8.1 or newer: the system's,
# or else the one that was unpacked beside a build.
sub curl_h2($w, @args)
{
    state @newer = do {
        my ($dir) = binary() =~ m{^(.*)/};
        my ($root) = grep { -x "$_/usr/bin/curl" } "$dir/beside",
            glob "$dir/../*/beside";
        my ($lib) = $root ? glob "$root/usr/lib/*/libcurl.so.4" : ();
        my @argv = $lib ? ('env', 'LD_LIBRARY_PATH=' . $lib =~ s{/[^/]*$}{}r,
            "$root/usr/bin/curl") : ('curl');
        my ($major, $minor) = run([ @argv, '-V' ])->{out}
            =~ /^curl (\d+)\.(\d+)/;
        die "no curl 8.1: make test unpacks one\n"
            if $major * 100 + $minor < 801;
        @argv;
    };
    local @curl = @newer;
    return curl(undef, '--proxy-http2', '--proxy-cacert', $w->ca, '-x',
        'https://localhost:' . $w->port, @args);
}

# One request through weir to a listener of its own, step by step.  ORIGIN in
# $request stands for the listener's address; $answer is what it says, a text
# or a list of pieces.  %o: head, for get_answer; client, a wire to use; last:
# the origin closes after it.
# Returns what the origin read, what the client read, and both wires.
sub through($w, $request, $answer, %o)
{
    my $l = listener();
    my $c = $o{client} // $w->client;
    $c->put($request =~ s/ORIGIN/$l->addr/ger);
    my $s    = $l->accept;
    my $seen = $s->get_request;
    $s->put(ref $answer ? join('', @$answer) : $answer);
    $s->close if $o{last};
    return ($seen, $c->get_answer(head => $o{head}), $c, $s);
}

# A request that no origin may see.  Returns the answer, read until weir has
# closed, with "closed" telling how.
sub never_seen($w, $request)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $l = listener();
    my $c = $w->client;
    $c->put($request =~ s/ORIGIN/$l->addr/ger);
    my $got = $c->get_answer;
    $got->{rest}   = $c->get_eof;
    $got->{closed} = $c->how;
    $got->{seen}   = $l->waiting;
    return $got;
}

# The first of some wires and listeners that has something to read.
sub first_of(@these)
{
    my $set = '';
    for my $one (@these) {
        return $one if ($one->{ahead} // '') ne '';
        vec($set, fileno $one->{sock}, 1) = 1;
    }
    select($set, undef, undef, LIMIT) > 0 or die "nothing came anywhere\n";
    return (grep { vec($set, fileno $_->{sock}, 1) } @these)[0];
}

# ---- origins ------------------------------------------------------------------

# Ports stay with the test that used them, or a weir of this test might call
# on an origin of another one that runs beside it: a socket is kept bound to
# each.  It does not listen, so the port refuses, until somebody (weir, a
# program of others) listens there beside it; SO_REUSEADDR allows both.
#
# They are none that the system gives away by itself: nobody gets the UDP port
# beside one by chance.
my @kept;
my $n_ports = (split ' ', slurp('/proc/sys/net/ipv4/ip_local_port_range'))[0]
    // 32768;

sub bound($host, $port, $proto, %o)
{
    return IO::Socket::IP->new(LocalHost => $host, LocalPort => $port,
        Proto => $proto, %o, Type => $proto eq 'tcp'
            ? Socket::SOCK_STREAM() : Socket::SOCK_DGRAM());
}

sub keep_port($host)
{
    for (1 .. 1000) {
        my $port = 10000 + int rand($n_ports - 10000);
        next if !bound($host, $port, 'tcp') || !bound($host, $port, 'udp');
        my $sock = bound($host, $port, 'tcp', ReuseAddr => 1) or next;
        push @kept, $sock;
        shift @kept if @kept > 300; # descriptors are not without end
        return $port;
    }
    die "no port of $host is free: $@\n";
}

# A listening socket in the test itself.  %o: host; port, one that is kept.
sub listener(%o)
{
    my $host = $o{host} // '127.0.0.1';
    my $port = $o{port} // keep_port($host);
    my $sock = IO::Socket::IP->new(LocalHost => $host, LocalPort => $port,
        Listen => SOMAXCONN, ReuseAddr => 1) or die "listen: $@";
    return bless { sock => $sock, port => $port }, 'Weir::Listener';
}

# A port that refuses.
sub closed_port()
{
    return keep_port('127.0.0.1');
}

# The same, for somebody who will listen there with SO_REUSEADDR.
sub free_port()
{
    return closed_port();
}

# An origin of its own process: $serve->($wire) for each connection, in a
# child.  %o: tls => { cert, key, alpn, ... } (see tls_server), host.
sub origin($serve, %o)
{
    my $l    = listener(%o);
    my $home = scratch('origin', 1);
    pipe my $watch, my $hold or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        %alive = ();
        close_others(fileno $l->{sock}, fileno $watch);
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        $SIG{CHLD} = 'IGNORE';
        eval { origin_loop($l, $serve, $watch, $home, \%o) };
        print STDERR "# origin: $@" if $@;
        _exit(1);
    }
    $alive{$pid} = 'origin';
    my $port = $l->{port};
    close $l->{sock};
    return bless { pid => $pid, name => 'origin', port => $port,
        home => $home, hold => $hold }, 'Weir::Origin';
}

# A copy of a wire in here would keep it open after the test has closed it.
# Their numbers stay taken: Perl counts the users of a number, and would not
# close one that it believes to have two.
sub close_others(@keep)
{
    my %keep = map { $_ => 1 } 0 .. 2, @keep;
    opendir my $d, '/proc/self/fd' or die "/proc/self/fd: $!";
    my @open = grep { /^\d+$/ && !$keep{$_} } readdir $d;
    open my $null, '<', '/dev/null' or die "/dev/null: $!";
    POSIX::dup2(fileno $null, $_) for grep { $_ != fileno $d } @open;
}

# Until the test is gone: then $watch has its end of file.
sub origin_loop($l, $serve, $watch, $home, $o)
{
    my $n = 0;
    while (1) {
        my $set = '';
        vec($set, fileno $_, 1) = 1 for $l->{sock}, $watch;
        next if select($set, undef, undef, undef) < 0;
        _exit(0) if vec($set, fileno $watch, 1);
        my $sock = $l->{sock}->accept or next;
        $n++;
        my $pid = fork // die "fork: $!";
        if ($pid != 0) {
            close $sock;
            next;
        }
        $SIG{CHLD} = 'DEFAULT';
        close $l->{sock};
        alarm 4 * LIMIT;
        my $wire = Weir::Wire->new($sock);
        @$wire{qw(home n)} = ($home, $n);
        $wire->note("accept $n");
        eval {
            $wire->tls_server($o->{tls}->%*) if $o->{tls};
            $serve->($wire);
            $wire->close;
            1;
        } or $wire->note("error: $@");
        _exit(0);
    }
}

# ---- certificates ---------------------------------------------------------------

my %certs;

# Write certificate and key to PEM files: { cert, key }.
sub pem($name, $cert, $key, @chain)
{
    require IO::Socket::SSL::Utils;
    my $text = join '', map { IO::Socket::SSL::Utils::PEM_cert2string($_) }
        $cert, @chain;
    my $file = scratch($name);
    return {
        cert => spew("$file.pem", $text),
        key  => spew("$file-key.pem",
            IO::Socket::SSL::Utils::PEM_key2string($key)),
    };
}

# The test's own authority and a set of server certificates, made once:
#   ca  good  expired  early  wrong  self  unknown (its authority: stranger)
sub certs()
{
    return \%certs if %certs;
    require IO::Socket::SSL::Utils;
    my $day = 86400;
    my @ca  = authority('test authority');
    my @odd = authority('nobody knows this authority');
    my $names = [ [DNS => 'good.test'], [DNS => '*.good.test'],
        [DNS => 'localhost'], [IP => '127.0.0.1'], [IP => '::1'] ];
    my $leaf = sub ($name, $issuer, %o) {
        return pem($name, IO::Socket::SSL::Utils::CERT_create(
            subject => { commonName => "test $name" }, purpose => 'server',
            key => IO::Socket::SSL::Utils::KEY_create_ec('prime256v1'),
            not_before => time - $day, not_after => time + 30 * $day,
            subjectAltNames => $names, ($issuer ? (issuer => $issuer) : ()),
            %o));
    };
    %certs = (
        ca      => pem('ca', @ca),
        ca_pair => \@ca,
        good    => $leaf->('good', \@ca),
        expired => $leaf->('expired', \@ca, not_before => time - 30 * $day,
            not_after => time - 10 * $day),
        early => $leaf->('early', \@ca, not_before => time + 10 * $day,
            not_after => time + 30 * $day),
        wrong => $leaf->('wrong', \@ca,
            subjectAltNames => [ [DNS => 'elsewhere.test'] ]),
        self    => $leaf->('self', undef),
        unknown => $leaf->('unknown', \@odd),
        stranger => pem('stranger', @odd),
    );
    return \%certs;
}

sub authority($name)
{
    require IO::Socket::SSL::Utils;
    return IO::Socket::SSL::Utils::CERT_create(
        subject => { commonName => $name }, CA => 1,
        key => IO::Socket::SSL::Utils::KEY_create_ec('prime256v1'),
        not_before => time - 86400, not_after => time + 3650 * 86400);
}

# ---- messages -------------------------------------------------------------------

# All values of a field, in order; the name in any case.
sub fields($message, $name)
{
    return map { $_->[1] } grep { lc $_->[0] eq lc $name }
        $message->{fields}->@*;
}

sub field($message, $name)
{
    return (fields($message, $name))[0];
}

# The text of a request: request('GET', 'http://...', [ fields... ], body).
sub request($method, $target, $fields = [], $body = '')
{
    my ($host) = $target =~ m{^\w+://([^/?#]*)};
    my @lines = ("$method $target HTTP/1.1",
        ($host && !grep({ /^host:/i } @$fields) ? "Host: $host" : ()),
        @$fields);
    return join("\r\n", @lines, '', '') . $body;
}

# Tell every origin of this test that waits for $name.
sub cue($origin, $name)
{
    spew("$origin->{home}/cue-$name", '');
}

# ---- an origin of its own process --------------------------------------------------

package Weir::Origin;
use v5.36;

sub port($self)  { $self->{port} }
sub addr($self)  { "127.0.0.1:$self->{port}" }
sub notes($self) { Weir::slurp("$self->{home}/notes") }

sub n_accepted($self)
{
    my $n = () = $self->notes =~ /^accept /mg;
    return $n;
}

# The text of the first note that matches.
sub wait_note($self, $re)
{
    return Weir::wait_for("the origin's note $re", sub {
        my ($hit) = grep { /$re/ } split /\n/, $self->notes;
        return $hit;
    });
}

sub stop($self)
{
    Weir::stop_process($self);
}

# ---- a listening socket ------------------------------------------------------------

package Weir::Listener;
use v5.36;

sub port($self) { $self->{port} }
sub addr($self) { "127.0.0.1:$self->{port}" }

sub accept($self, $limit = Weir::LIMIT)
{
    my $set = '';
    vec($set, fileno $self->{sock}, 1) = 1;
    select($set, undef, undef, $limit) > 0 or die "nobody came in $limit s\n";
    return Weir::Wire->new($self->{sock}->accept // die "accept: $!");
}

# Has somebody come who was not accepted yet?
sub waiting($self, $limit = 0)
{
    my $set = '';
    vec($set, fileno $self->{sock}, 1) = 1;
    return select($set, undef, undef, $limit) > 0;
}

sub close($self)
{
    CORE::close($self->{sock});
}

# ---- a socket on which every wait has a limit -----------------------------------------

package Weir::Wire;
use v5.36;
use Errno qw(EAGAIN EINTR ECONNRESET EPIPE);
use Socket qw(SOL_SOCKET SO_LINGER IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(time);

sub new($class, $sock)
{
    $sock->blocking(0);
    setsockopt $sock, IPPROTO_TCP, TCP_NODELAY, 1;
    return bless { sock => $sock, ahead => '', end => undef,
        limit => Weir::LIMIT }, $class;
}

sub dial($class, $host, $port)
{
    my $sock = IO::Socket::IP->new(PeerHost => $host, PeerPort => $port,
        Timeout => Weir::LIMIT) or die "connect to $host:$port: $@";
    return $class->new($sock);
}

# Become TLS.  %o: sni, ca (file; absent: not verified), alpn [], and what
# IO::Socket::SSL calls by SSL_ names.  Returns false if it fails; then error.
sub tls_client($self, %o)
{
    require IO::Socket::SSL;
    my @ssl = map { ($_ => $o{$_}) } grep { /^SSL_/ } keys %o;
    return $self->tls_begin(
        SSL_hostname => $o{sni} // '',
        ($o{ca}
            ? (SSL_ca_file => $o{ca}, SSL_verify_mode => 1,
                SSL_verifycn_name => $o{name} // $o{sni},
                SSL_verifycn_scheme => 'http')
            : (SSL_verify_mode => 0)),
        ($o{alpn} ? (SSL_alpn_protocols => $o{alpn}) : ()), @ssl);
}

# Become TLS as a server.  %o: cert, key, alpn [].
sub tls_server($self, %o)
{
    require IO::Socket::SSL;
    my @ssl = map { ($_ => $o{$_}) } grep { /^SSL_/ } keys %o;
    $self->tls_begin(SSL_server => 1, SSL_cert_file => $o{cert},
        SSL_key_file => $o{key},
        ($o{alpn} ? (SSL_alpn_protocols => $o{alpn}) : ()), @ssl)
        or die "TLS: $self->{error}\n";
    return 1;
}

sub tls_begin($self, @ssl)
{
    my $sock = $self->{sock};
    $sock->blocking(1);
    my $tls = IO::Socket::SSL->start_SSL($sock, Timeout => $self->{limit},
        @ssl);
    if (!$tls) {
        $self->{error} = $IO::Socket::SSL::SSL_ERROR;
        return 0;
    }
    $tls->blocking(0);
    $self->{sock} = $tls;
    $self->{tls}  = 1;
    return 1;
}

sub note($self, $text)
{
    open my $out, '>>', "$self->{home}/notes" or die "notes: $!";
    syswrite $out, "$text\n";
}

sub wait_cue($self, $name)
{
    Weir::wait_for("the cue $name", sub { -e "$self->{home}/cue-$name" });
}

sub wait_ready($self, $to_write, $until, $what)
{
    my $set = '';
    vec($set, fileno $self->{sock}, 1) = 1;
    my $left = $until - time;
    return if $left > 0 && ($to_write
        ? select(undef, $set, undef, $left)
        : select($set, undef, undef, $left)) != 0;
    my $seen = length $self->{ahead} > 300
        ? substr($self->{ahead}, 0, 300) . '...' : $self->{ahead};
    die "$what: nothing in $self->{limit} s after \"$seen\"\n";
}

# Send all of it.  False: the peer is gone (a fact some tests want to see).
sub put($self, $bytes)
{
    my $until = time + $self->{limit};
    my $at    = 0;
    while ($at < length $bytes) {
        my $n = syswrite $self->{sock}, $bytes, length($bytes) - $at, $at;
        if (defined $n) {
            $at += $n;
            next;
        }
        my $again = $!{EAGAIN} || $!{EINTR}
            || ($self->{tls}
                && $IO::Socket::SSL::SSL_ERROR =~ /SSL wants a/);
        return 0 if !$again;
        $self->wait_ready(1, $until, 'send');
    }
    return 1;
}

# One read into {ahead}; false at the end, which {end} then names: "eof",
# "reset", or "cut" (TLS without its close_notify).
sub fill($self, $what = 'read')
{
    my $until = time + $self->{limit};
    while (!$self->{end}) {
        my $n = sysread $self->{sock}, $self->{ahead}, 65536,
            length $self->{ahead};
        return 1 if $n;
        if (defined $n) {
            my $bare = $self->{tls} && !$self->close_notified;
            $self->{end} = $bare ? 'cut' : 'eof';
        } elsif ($!{EAGAIN} || $!{EINTR}
            || ($self->{tls}
                && $IO::Socket::SSL::SSL_ERROR =~ /SSL wants a/)) {
            $self->wait_ready(0, $until, $what);
        } elsif ($!{ECONNRESET} || $!{EPIPE}) {
            $self->{end} = 'reset';
        } else {
            $self->{end} = 'cut';
        }
    }
    return 0;
}

# SSL_RECEIVED_SHUTDOWN is 2.
sub close_notified($self)
{
    my $ssl = ${*{ $self->{sock} }}{_SSL_object} or return 1;
    return Net::SSLeay::get_shutdown($ssl) & 2;
}

# Up to and including what $re matches; short at the end of the stream.
sub get_until($self, $re)
{
    while (1) {
        return $self->take($+[0]) if $self->{ahead} =~ $re;
        last if !$self->fill("wait for $re");
    }
    return $self->take(length $self->{ahead});
}

sub get($self, $n)
{
    while (length $self->{ahead} < $n) {
        last if !$self->fill("wait for $n bytes");
    }
    return $self->take($n);
}

sub get_eof($self)
{
    1 while $self->fill('wait for the end');
    return $self->take(length $self->{ahead});
}

# What is there, waiting for at least one byte ('': the end).
sub get_some($self)
{
    $self->fill if $self->{ahead} eq '';
    return $self->take(length $self->{ahead});
}

sub take($self, $n)
{
    return substr $self->{ahead}, 0, $n, '';
}

# One head, with its empty line; '' if the stream ends before its first byte.
sub get_head($self)
{
    return $self->get_until(qr/\r\n\r\n/);
}

sub how($self) { $self->{end} // 'open' }

# Did nothing come within $s seconds?  For what must not happen: the one wait
# that has to last.
sub silent($self, $s)
{
    return 0 if $self->{ahead} ne '';
    my $set = '';
    vec($set, fileno $self->{sock}, 1) = 1;
    return select($set, undef, undef, $s) == 0;
}

sub parse_head($raw)
{
    my ($first, @lines) = split /\r\n/, $raw;
    return { first => $first // '',
        fields => [ map { [ /^([^:]*):[ \t]*(.*?)[ \t]*$/s ] } @lines ] };
}

# One request, read: { method, target, head, fields, body, trailers }.
sub get_request($self)
{
    my $raw = $self->get_head;
    return undef if $raw eq '';
    my $r = parse_head($raw);
    @$r{qw(method target version)} = split / /, $r->{first};
    $r->{head} = $raw;
    $self->note($raw =~ s/\r\n/|/gr) if $self->{home};
    return $r if $raw !~ /\r\n\r\n\z/;
    $self->put("HTTP/1.1 100 Continue\r\n\r\n")
        if (Weir::field($r, 'expect') // '') =~ /100-continue/i;
    $self->get_body($r, 0);
    return $r;
}

# One answer, read.  %o: head => 1 after HEAD, connect => 1 after CONNECT.
# A 1xx is an answer of its own.
sub get_answer($self, %o)
{
    my $raw = $self->get_head;
    my $r   = parse_head($raw);
    $r->{head} = $raw;
    $r->{body} = '';
    ($r->{version}, $r->{status}, $r->{reason}) =
        $r->{first} =~ m{^(HTTP/\d\.\d) (\d{3}) (.*)$};
    $r->{status} //= 0;
    my $none = $o{head} || $r->{status} < 200 || $r->{status} =~ /^[23]04$/
        || ($o{connect} && $r->{status} < 300);
    $r->{complete} = $raw =~ /\r\n\r\n\z/ && $r->{status} > 0;
    $self->get_body($r, 1) if !$none && $r->{complete};
    return $r;
}

sub get_body($self, $r, $is_answer)
{
    my $length = Weir::field($r, 'content-length');
    $r->{body} = '';
    if ((Weir::field($r, 'transfer-encoding') // '') =~ /chunked\s*$/i) {
        $self->get_chunks($r);
    } elsif (defined $length) {
        $r->{body}     = $self->get($length);
        $r->{complete} = length $r->{body} == $length;
    } elsif ($is_answer) {
        $r->{until_close} = 1;
        $r->{body}        = $self->get_eof;
        $r->{complete}    = $self->how eq 'eof';
    } else {
        $r->{complete} = 1;
    }
}

sub get_chunks($self, $r)
{
    $r->{chunked}  = 1;
    $r->{complete} = 0;
    $r->{chunks}   = [];
    while (1) {
        my $line = $self->get_until(qr/\r\n/);
        return if $line !~ /^([0-9a-fA-F]+)(.*)\r\n$/;
        my $n = hex $1;
        push $r->{extensions}->@*, $2 if $2 ne '';
        last if $n == 0;
        my $data = $self->get($n + 2);
        $r->{body} .= substr $data, 0, $n;
        push $r->{chunks}->@*, $n;
        return if length $data != $n + 2;
    }
    my $raw = '';
    while (1) {
        my $line = $self->get_until(qr/\r\n/);
        return if $line !~ /\r\n$/;
        last   if $line eq "\r\n";
        $raw .= $line;
    }
    $r->{complete} = 1;
    $r->{trailers} = parse_head("trailers\r\n$raw")->{fields};
}

# Send a request and read its answer.
sub ask($self, @request)
{
    $self->put(Weir::request(@request));
    return $self->get_answer(head => $request[0] eq 'HEAD',
        connect => $request[0] eq 'CONNECT');
}

# CONNECT to $target, expecting a 200; then the wire leads there.
sub connect($self, $target)
{
    $self->put("CONNECT $target HTTP/1.1\r\nHost: $target\r\n\r\n");
    my $r = $self->get_answer(connect => 1);
    die "CONNECT $target: $r->{head}$r->{body}\n" if $r->{status} != 200;
    return $r;
}

sub shut($self)
{
    shutdown $self->{sock}, 1;
}

sub close($self)
{
    my $sock = delete $self->{sock} or return;
    $self->{end} //= 'closed';
    $self->{tls} ? $sock->close(SSL_fast_shutdown => 1) : CORE::close($sock);
}

# Let go without a close_notify: the TLS way to cut a message short.
sub cut($self)
{
    my $sock = delete $self->{sock} or return;
    $self->{end} //= 'closed';
    shutdown $sock, 2;
    $self->{tls} ? $sock->close(SSL_no_shutdown => 1) : CORE::close($sock);
}

# A reset, whatever was sent before.
sub reset($self)
{
    my $sock = delete $self->{sock} or return;
    $self->{end} //= 'closed';
    setsockopt $sock, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0;
    $self->{tls} ? $sock->close(SSL_no_shutdown => 1) : CORE::close($sock);
}

1;
