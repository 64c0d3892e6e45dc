# H3load.pm - HTTP/3 under load: gtlsclient makes the traffic, towards weir as
# a forward proxy and towards caddy as a reverse proxy of the same origin.
package H3load;
use v5.36;
use Exporter 'import';
use Time::HiRes qw(time);
use Peers;
use Proc;

our @EXPORT = qw(h3load h3_ways);

sub client($way, $n, $path, @args)
{
    return proc_run(60, 'gtlsclient', @args, '--exit-on-all-streams-close',
        '-n', $n, 'localhost', $way->{port}, "$way->{url}/$path");
}

# One load on a way: $n requests for $size bytes, or with so many (up), on one
# connection.  What bench/load would have said of it; the client's start and
# the handshake count.  gtlsclient does not tell what it got: one answer before
# has to be right.
sub h3load($way, $kind, $n, $size)
{
    my @args = ('-q', '--no-quic-dump', '--no-http-dump');
    my ($first) = client($way, 1, 10, '--no-quic-dump');
    return '' if ($first . slurp_log()) !~ /\[:status: 200\]/;
    if ($kind eq 'up') {
        my $file = scratch('h3-content');
        open my $out, '>', $file or die "$file: $!\n";
        truncate $out, $size or die "$file: $!\n";
        push @args, '-m', 'POST', '-d', $file;
    }
    my $from = time;
    my (undef, $exit) = client($way, $n, $kind eq 'up' ? 0 : $size, @args);
    my $s = time - $from;
    return '' if !defined $exit || $exit != 0;
    return sprintf 'units=%d s=%.6f bytes=%d p50_us=0 p99_us=0', $n, $s,
        $n * $size;
}

sub slurp_log()
{
    open my $in, '<', scratch('load.log') or return '';
    local $/;
    return <$in>;
}

sub start_caddy($origin)
{
    my $port = free_port();
    my $file = scratch('Caddyfile');
    my ($crt, $key) = map { scratch($_) } 'leaf.pem', 'leaf-key.pem';
    open my $out, '>', $file or die "$file: $!\n";
    print $out "{\n\tadmin off\n\tauto_https off\n}\nhttps://localhost:$port {\n"
        . "\ttls $crt $key\n\treverse_proxy 127.0.0.1:$origin\n}\n";
    close $out or die "$file: $!\n";
    return { name => 'caddy', port => $port, url => "https://localhost:$port",
        pid => proc_start('caddy', 'caddy', 'run', '--config', $file,
            '--adapter', 'caddyfile') };
}

# Both, to an HTTP/1 origin; undefined: it does not start.
sub h3_ways($origin)
{
    my $weir = weir_new('weir-h3');
    $weir->{name} = 'weir';
    $weir->{url} = "http://127.0.0.1:$origin";
    return map { wait_port($_->{pid}, $_->{port}) ? $_
        : { name => $_->{name}, missing => 1 } } $weir, start_caddy($origin);
}

1;
