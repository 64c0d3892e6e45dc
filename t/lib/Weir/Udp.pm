# Udp.pm - connect-udp by hand: capsules on a wire, or on a stream of HTTP/2 or
# HTTP/3, and datagrams of HTTP/3.
#
# A Weir::Udp is a tunnel that was asked for, granted or not.  It sends what it
# is told to, right or wrong, and hands out the datagrams that come.

package Weir::Udp;
use v5.36;
use Exporter 'import';
use IO::Socket::IP;
use POSIX ();
use Socket qw(SOCK_DGRAM);
use Weir ();
use Weir::H2;
use Weir::H3;

our @EXPORT = qw(varint capsule datagram udp_socket udp_receive udp_path
    forwarder);

sub varint($n)
{
    return $n < 64   ? pack('C', $n)
        : $n < 16384 ? pack('n', 0x4000 | $n)
        : $n < 1 << 30 ? pack('N', 0x80000000 | $n)
        :                pack('Q>', 3 << 62 | $n);
}

sub capsule($type, $value)
{
    return varint($type) . varint(length $value) . $value;
}

# One that carries the content of a UDP packet.
sub datagram($content, $context = 0)
{
    return capsule(0, varint($context) . $content);
}

sub take_varint($buf)
{
    return undef if !length $$buf;
    my $len = 1 << (ord($$buf) >> 6);
    return undef if length $$buf < $len;
    my $n = 0;
    $n = $n << 8 | ord $_ for split //, substr $$buf, 0, $len, '';
    return $n & ~(3 << (8 * $len - 2));
}

sub udp_socket(%o)
{
    return IO::Socket::IP->new(LocalHost => $o{host} // '127.0.0.1',
        LocalPort => $o{port} // 0, Type => SOCK_DGRAM, Proto => 'udp')
        // die "udp: $@";
}

# One datagram, and whom it is from.  If $s is given: undef after so many
# seconds.
sub udp_receive($sock, $s = undef)
{
    my $set = '';
    vec($set, fileno $sock, 1) = 1;
    if (select($set, undef, undef, $s // Weir::LIMIT) <= 0) {
        die "no datagram came\n" if !defined $s;
        return undef;
    }
    my $from = $sock->recv(my $data, 65536);
    return wantarray ? ($data, $from) : $data;
}

sub udp_path($host, $port)
{
    return "/.well-known/masque/udp/$host/$port/";
}

# ---- a tunnel ---------------------------------------------------------------------

# By Upgrade on a wire.  %o: method, target, fields (lines), early (bytes right
# behind the request).
sub by_h1($class, $wire, $path, %o)
{
    my $method = $o{method} // 'GET';
    my $host   = $o{host}   // 'localhost';
    my $target = $o{target} // $path;
    $wire->put("$method $target HTTP/1.1\r\nHost: $host\r\n"
            . "Connection: Upgrade\r\nUpgrade: connect-udp\r\n"
            . "Capsule-Protocol: ?1\r\n"
            . join('', map { "$_\r\n" } ($o{fields} // [])->@*)
            . "\r\n" . ($o{early} // ''));
    my $self = bless { wire => $wire, in => '' }, $class;
    my $raw = $wire->get_head;
    $self->{head} = $raw;
    ($self->{status}) = $raw =~ m{^HTTP/1\.1 (\d+)};
    if ($self->{status} && $self->{status} != 101
        && $raw =~ /^Content-Length: (\d+)/m) {
        $self->{body} = $wire->get($1);
    }
    return $self;
}

# By extended CONNECT on a Weir::H2.  %o: authority, scheme, fields (pairs).
sub by_h2($class, $h2, $path, %o)
{
    my $id = $h2->request([ ':method', 'CONNECT', ':protocol', 'connect-udp',
        ':scheme', $o{scheme} // 'https', ':authority',
        $o{authority} // 'localhost', ':path', $path, 'capsule-protocol',
        '?1', ($o{fields} // [])->@* ], end => 0);
    my $self = bless { h2 => $h2, id => $id, in => '' }, $class;
    my $s = $h2->stream($id);
    $h2->data($id, $o{early}) if defined $o{early};
    $h2->until(sub { $s->{heads}->@* || $s->{reset} || $h2->{goaway} });
    $self->{status} = $s->{status};
    $self->{head} = join '', map { "$_->[0]: $_->[1]\r\n" }
        ($s->{fields} // [])->@*;
    if (($s->{status} // 0) != 200) {
        $h2->until(sub { $s->{end} || $s->{reset} || $h2->{goaway} });
        $self->{body} = $s->{body};
    }
    return $self;
}

# By extended CONNECT on a Weir::H3.  %o: as for HTTP/2; capsules: no datagrams.
sub by_h3($class, $h3, $path, %o)
{
    my $id = $h3->request([ ':method', 'CONNECT', ':protocol', 'connect-udp',
        ':scheme', $o{scheme} // 'https', ':authority',
        $o{authority} // 'localhost', ':path', $path, 'capsule-protocol',
        '?1', ($o{fields} // [])->@* ], end => 0);
    my $self = bless { h3 => $h3, id => $id, in => '' }, $class;
    my $s = $h3->stream($id);
    $h3->data($id, $o{early}) if defined $o{early};
    $h3->until(sub { $s->{heads}->@* || $s->{reset} });
    $self->{status} = $s->{status};
    $self->{head} = join '', map { "$_->[0]: $_->[1]\r\n" }
        ($s->{fields} // [])->@*;
    if (($s->{status} // 0) != 200) {
        $h3->until(sub { $s->{end} || $s->{reset} });
        $self->{body} = $s->{body};
    }
    return $self;
}

# A packet's content, as a datagram of HTTP/3.
sub say($self, $content, $context = 0)
{
    return $self->{h3}->datagram($self->{id}, varint($context) . $content);
}

# The next such datagram's payload; undef: the tunnel has ended.
sub hear($self)
{
    my ($h3, $s) = ($self->{h3}, $self->{h3}->stream($self->{id}));
    my $got = $h3->{datagrams};
    $h3->until(sub { @$got || $s->{end} || $s->{reset} });
    my $one = shift @$got // return undef;
    my ($id, $payload) = @$one;
    die "a datagram for stream $id\n" if $id != $self->{id};
    my $context = take_varint(\$payload);
    die "context $context\n" if $context != 0;
    return $payload;
}

sub field($self, $name)
{
    return $self->{head} =~ /^\Q$name\E:[ \t]*(.*?)\r?$/mi ? $1 : undef;
}

sub open($self) { ($self->{status} // 0) =~ /^(101|200)$/ }

# Bytes as they are.
sub put($self, $bytes)
{
    return $self->{wire}->put($bytes) if $self->{wire};
    return $self->{h3}->data($self->{id}, $bytes) if $self->{h3};
    $self->{h2}->data($self->{id}, substr $bytes, 0, 16384, '')
        while length $bytes;
    return 1;
}

# A packet's content.
sub send($self, $content)
{
    return $self->put(datagram($content));
}

# More bytes, if there will be any.
sub more($self)
{
    if ($self->{wire}) {
        my $wire = $self->{wire};
        return 0 if $wire->{ahead} eq '' && !$wire->fill('capsule');
        $self->{in} .= $wire->{ahead};
        $wire->{ahead} = '';
        return 1;
    }
    my $h2 = $self->{h2} // $self->{h3};
    my $s = $h2->stream($self->{id});
    return 0 if $s->{reset};
    $h2->until(sub { length $s->{body} || $s->{end} || $s->{reset} });
    my $n = length $s->{body};
    $self->{in} .= $s->{body};
    $s->{body} = '';
    if ($n > 0 && $self->{h2}) {
        $h2->put('WINDOW_UPDATE', 0, $_, pack 'N', $n) for 0, $self->{id};
    }
    return $n > 0;
}

# The next capsule: (type, value); () at the end of the tunnel.
sub next_capsule($self)
{
    while (1) {
        my $copy = $self->{in};
        my $type = take_varint(\$copy);
        my $len = defined $type ? take_varint(\$copy) : undef;
        if (defined $len && length $copy >= $len) {
            $self->{in} = substr $copy, $len;
            return ($type, substr $copy, 0, $len);
        }
        return () if !$self->more;
    }
}

# The next packet's content; undef at the end of the tunnel.
sub receive($self)
{
    while (my ($type, $value) = $self->next_capsule) {
        next if $type != 0;
        my $context = take_varint(\$value);
        return $value if defined $context && $context == 0;
    }
    return undef;
}

# Our direction is over.
sub finish($self)
{
    my $session = $self->{h2} // $self->{h3};
    return $session->data($self->{id}, '', 1) if $session;
    my $ssl = $self->{wire}{tls} && ${*{ $self->{wire}{sock} }}{_SSL_object};
    Net::SSLeay::shutdown($ssl) if $ssl;
    $self->{wire}->shut if !$ssl;
}

# The client is gone, without a word about the tunnel.
sub vanish($self)
{
    return $self->{h3}->close if $self->{h3};
    ($self->{wire} // $self->{h2}{wire})->reset;
}

# ---- a port that leads into a tunnel ------------------------------------------------

# A UDP port: what is sent to it goes through the tunnel that $make->() gives,
# to whoever sent last.  %o: say => 1: by datagrams of HTTP/3.  A process of its
# own, so that real clients can use it.  Ends with the test, or by close().
my %holds; # of those that run: a copy in another process keeps them alive

sub forwarder($make, %o)
{
    my $local = udp_socket();
    pipe my $watch, my $hold or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        CORE::close $_ for $hold, values %holds;
        Weir::H3::forked();
        eval { forward($make->(), $local, $watch, $o{say}) };
        print STDERR "# forwarder: $@" if $@;
        POSIX::_exit(0);
    }
    $holds{$pid} = $hold;
    return bless { port => $local->sockport, pid => $pid },
        'Weir::Udp::Forwarder';
}

sub forward($t, $local, $watch, $say)
{
    die "no tunnel: $t->{head}\n" if !$t->open;
    my $wire = $t->{wire} // ($t->{h2} ? $t->{h2}{wire} : undef);
    my $from = $wire ? $wire->{sock} : Weir::H3::handle();
    my $peer;
    while (1) {
        my $set = '';
        vec($set, fileno $_, 1) = 1 for $local, $watch, $from;
        next if select($set, undef, undef, undef) < 0;
        return if vec($set, fileno $watch, 1);
        if (vec($set, fileno $local, 1)) {
            $peer = $local->recv(my $data, 65536);
            $say ? $t->say($data) : $t->send($data);
        }
        next if !vec($set, fileno $from, 1);
        $t->look or return;
        $local->send($_, 0, $peer) for $t->have;
    }
}

# One step of reading; false: the tunnel has ended.
sub look($self)
{
    return $self->more if $self->{wire};
    my $s = ($self->{h2} // $self->{h3})->stream($self->{id});
    if ($self->{h2}) {
        $self->{h2}->get_frame or return 0;
    } else {
        Weir::H3::pump(0);
        1 while Weir::H3::pump(0);
    }
    my $n = length $s->{body};
    $self->{in} .= $s->{body};
    $s->{body} = '';
    if ($n > 0 && $self->{h2}) {
        $self->{h2}->put('WINDOW_UPDATE', 0, $_, pack 'N', $n)
            for 0, $self->{id};
    }
    return !$s->{end} && !$s->{reset};
}

# The packets that are here.
sub have($self)
{
    my @all;
    if ($self->{h3}) {
        @all = map { substr $_->[1], 1 } $self->{h3}{datagrams}->@*;
        $self->{h3}{datagrams}->@* = ();
    }
    while (1) {
        my $copy = $self->{in};
        my $type = take_varint(\$copy) // last;
        my $len  = take_varint(\$copy) // last;
        last if length $copy < $len;
        $self->{in} = substr $copy, $len;
        push @all, substr $copy, 1, $len - 1 if $type == 0;
    }
    return @all;
}

package Weir::Udp::Forwarder { # its end
    sub port($self) { $self->{port} }

    sub close($self)
    {
        CORE::close(delete $holds{ $self->{pid} } // return);
        waitpid $self->{pid}, 0;
    }

    sub DESTROY($self) { local ($?, $!); $self->close }
}

# How it ended: "end", or "cut".
sub ending($self)
{
    1 while $self->more;
    return $self->{wire}->how eq 'eof' ? 'end' : 'cut' if $self->{wire};
    my $s = ($self->{h2} // $self->{h3})->stream($self->{id});
    return $s->{reset} ? 'cut' : $s->{end} ? 'end' : 'lost';
}

1;
