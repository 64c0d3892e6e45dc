# H2load.pm - HTTP/2 under load: h2load makes the traffic, nghttpd is the
# origin that speaks HTTP/2.
package H2load;
use v5.36;
use Exporter 'import';
use Proc;

our @EXPORT = qw(h2load h2_origin);

use constant SIZES => { 1024 => 1024, '100m' => 100_000_000 };

my $origin;

# Its port; started on first use.  Undefined: there is no nghttpd.
sub h2_origin()
{
    return $origin if $origin;
    my $port = free_port();
    my $www  = scratch('www');
    mkdir $www;
    for my $name (keys SIZES->%*) {
        open my $file, '>', "$www/$name" or die "$www/$name: $!\n";
        truncate $file, SIZES->{$name} or die "$www/$name: $!\n";
    }
    my $pid = proc_start('nghttpd', 'nghttpd', '-d', $www, $port,
        scratch('leaf-key.pem'), scratch('leaf.pem'));
    return if !wait_port($pid, $port);
    return $origin = $port;
}

# One load on a way: what bench/load would have said of it.  @args: as for
# h2load(1), -n last but for the URL's path.
sub h2load($way, @args)
{
    my $path = pop @args;
    $args[-1] = $way->{most} if $way->{most} && $args[-1] > $way->{most};
    my $log  = scratch('h2load.log');
    unlink $log;
    my ($text) = proc_run(60, 'h2load', @args, "--connect-to=127.0.0.1:$way->{port}",
        "--log-file=$log", "https://known.test/$path");
    my ($number, $unit) = $text =~ /^finished in ([\d.]+)(us|ms|s),/m
        or return '';
    my ($units, $failed, $errored) = $text
        =~ /(\d+) succeeded, (\d+) failed, (\d+) errored/ or return '';
    open my $in, '<', $log or return '';
    my @took = sort { $a <=> $b } map { (split /\t/)[2] } <$in>;
    return sprintf 'units=%d s=%.6f bytes=%d errors=%d p50_us=%d p99_us=%d',
        $units, $number / { us => 1e6, ms => 1e3, s => 1 }->{$unit},
        $units * SIZES->{$path}, $failed + $errored,
        $took[ @took / 2 ] // 0, $took[ @took * 0.99 ] // 0;
}

1;
