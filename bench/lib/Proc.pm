# Proc.pm - the processes of a measurement: started, watched, ended.
#
# A process is known by its id.  All of them end with the program, however it
# ends; each by its id, and those it started by theirs.
#
#   proc_start(NAME, COMMAND...)   pid; output goes to a file named NAME.log
#   proc_pipe(NAME, COMMAND...)    pid, a line reader, a pipe it reads from
#   proc_run(LIMIT, COMMAND...)    what it printed, its status
#   proc_cpu(PID)                  seconds of processor so far, with children
#   proc_memory(PID)               KiB: pss, rss, kernel stacks; threads
package Proc;
use v5.36;
use Exporter 'import';
use File::Temp ();
use IO::Socket::INET;
use POSIX qw(:sys_wait_h sysconf _SC_CLK_TCK);
use Time::HiRes qw(time sleep clock_gettime);

our @EXPORT = qw(
    scratch proc_start proc_pipe proc_run proc_end proc_cpu proc_settle
    proc_memory proc_alive proc_log free_port wait_port
);

use constant {
    STACK_KIB => 16,                       # THREAD_SIZE of x86-64 and arm64
    TICK      => 1 / sysconf(_SC_CLK_TCK),
};

my $me  = $$;
my $dir = File::Temp->newdir('weir-bench-XXXXXX', TMPDIR => 1);
chmod 0755, $dir;    # squid and dante give up root's rights
my (%alive, %used);
$SIG{$_} = sub { exit 130 } for qw(INT TERM HUP);
$SIG{PIPE} = 'IGNORE';

sub scratch($name)
{
    return "$dir/$name";
}

# Every process may open as many descriptors as there may be.
sub start($name, $in, $out, @command)
{
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        open STDIN,  '<&', $in  or POSIX::_exit(126);
        open STDOUT, '>&', $out or POSIX::_exit(126);
        open STDERR, '>>', scratch("$name.log") or POSIX::_exit(126);
        $ENV{HOME} = "$dir";
        my $more = 'ulimit -n $(ulimit -Hn); exec "$@"';
        exec('sh', '-c', $more, 'sh', @command) or POSIX::_exit(127);
    }
    $alive{$pid} = $name;
    return $pid;
}

sub proc_start($name, @command)
{
    open my $in,  '<', '/dev/null' or die;
    open my $out, '>>', scratch("$name.log") or die;
    return start($name, $in, $out, @command);
}

sub proc_pipe($name, @command)
{
    pipe my $in,  my $to   or die;
    pipe my $from, my $out or die;
    return (start($name, $in, $out, @command), $from, $to);
}

# Undefined status: it was ended at the limit.
sub proc_run($limit, @command)
{
    pipe my $from, my $out or die;
    open my $in, '<', '/dev/null' or die;
    unlink scratch('load.log');
    my $pid = start('load', $in, $out, @command);
    close $out;
    my $late = 0;
    local $SIG{ALRM} = sub { $late = 1; kill KILL => $pid };
    alarm $limit;
    local $/;
    my $text = <$from> // '';
    waitpid $pid, 0;
    alarm 0;
    delete $alive{$pid};
    return ($text, $late ? undef : $? >> 8);
}

# ---- what /proc says --------------------------------------------------------

sub stat_of($pid)
{
    open my $in, '<', "/proc/$pid/stat" or return;
    my $line = <$in> // return;
    $line =~ s/^.*\) //s;    # the name may hold anything
    return split ' ', $line;
}

# The process and all below it.
sub tree($pid)
{
    my %below;
    for (glob '/proc/[0-9]*') {
        my $id = substr $_, 6;
        my @stat = stat_of($id) or next;
        push @{ $below{ $stat[1] } }, $id;
    }
    my @all = ($pid);
    for (my $i = 0; $i < @all; $i++) {
        push @all, @{ $below{ $all[$i] } // [] };
    }
    return @all;
}

# proc(5) counts in ticks of 10 ms; the process's clock counts the same time
# in ns (clock_getcpuclockid(3)), but not that of children it has reaped.
sub cpu_of($pid)
{
    my @stat = stat_of($pid) or return 0;
    my $id = do { use integer; ((~(0 + $pid)) << 3) | 2 };
    my $own = clock_gettime($id);
    $own = ($stat[11] + $stat[12]) * TICK if $own <= 0;
    return $own + ($stat[13] + $stat[14]) * TICK;
}

sub proc_cpu($pid)
{
    my $sum = 0;
    $sum += cpu_of($_) for tree($pid);
    return $sum;
}

# Waits until it has nothing more to do, 2 s at most: tearing down counts.
sub proc_settle($pid)
{
    my $until = time + 2;
    my $was = proc_cpu($pid);
    while (time < $until) {
        sleep 0.03;
        my $is = proc_cpu($pid);
        return if $is - $was < 0.0005;
        $was = $is;
    }
}

sub proc_memory($pid)
{
    my %sum = (pss => 0, rss => 0, stacks => 0, threads => 0);
    for my $id (tree($pid)) {
        open my $in, '<', "/proc/$id/smaps_rollup" or next;
        while (<$in>) {
            $sum{pss} += $1 if /^Pss:\s+(\d+) kB/;
            $sum{rss} += $1 if /^Rss:\s+(\d+) kB/;
        }
        $sum{threads} += () = glob "/proc/$id/task/*";
    }
    $sum{stacks} = $sum{threads} * STACK_KIB;
    return \%sum;
}

sub proc_alive($pid)
{
    return 0 if !$alive{$pid};
    return 1 if waitpid($pid, WNOHANG) == 0;
    delete $alive{$pid};
    return 0;
}

sub proc_log($name)
{
    open my $in, '<', scratch("$name.log") or return '';
    my @lines = <$in>;
    return join '', @lines > 5 ? @lines[-5 .. -1] : @lines;
}

# ---- ports, the end ---------------------------------------------------------

sub free_port()
{
    while (1) {
        my $s = IO::Socket::INET->new(
            Listen => 1, LocalAddr => '127.0.0.1', LocalPort => 0) or die;
        return $s->sockport if !$used{ $s->sockport }++;
    }
}

sub wait_port($pid, $port, $limit = 30)
{
    my $until = time + $limit;
    while (time < $until && proc_alive($pid)) {
        return 1 if IO::Socket::INET->new(
            PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 1);
        sleep 0.02;
    }
    return 0;
}

sub proc_end($pid)
{
    return if !$alive{$pid};
    my @all = tree($pid);
    kill TERM => $pid;
    my $until = time + 5;
    sleep 0.01 while time < $until && waitpid($pid, WNOHANG) == 0;
    kill KILL => grep { -e "/proc/$_" } @all;
    waitpid $pid, 0;
    delete $alive{$pid};
}

END {
    if ($$ == $me) {
        local $?;
        proc_end($_) for keys %alive;
    }
}

1;
