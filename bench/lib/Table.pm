# Table.pm - what is printed: one table a measure, and the figures to reach.
package Table;
use v5.36;
use Exporter 'import';

our @EXPORT = qw(table figure figures field_name);

my %names = (
    rate => 'a second', us => 'CPU us', mbs => 'MB/s', sgb => 'CPU s/GB',
    p50_us => 'median us', p99_us => '99 % us',
);
my @figures;

sub field_name($field)
{
    return $names{$field};
}

sub number($value)
{
    return '-' if !$value; # not measured, or there is no proxy
    return sprintf $value >= 100 ? '%.0f' : $value >= 10 ? '%.1f' : '%.3f',
        $value;
}

# A row a way, its fields one behind the other in each case's column.  "!"
# marks a cell whose load saw errors; "-" one that could not be measured.
sub table($title, $fields, $ways, $cases, $cells)
{
    my $width = 9 * @$fields;
    my $text = "\n$title\n" . sprintf('%-12s', '');
    my $notes = '';
    $text .= sprintf " %*s", $width, $_ for @$cases;
    $text .= "\n";
    for my $way (@$ways) {
        $text .= sprintf '%-12s', $way;
        for my $case (@$cases) {
            my $c = $cells->{$case}{$way};
            my $cell = $c
                ? join('', map { sprintf '%9s', number($c->{$_}) } @$fields)
                . ($c->{errors} ? '!' : ' ')
                : sprintf("%*s", $width + 1, '- ');
            $text .= $cell;
            $notes .= "! $way, $case: $c->{errors} errors: $c->{wrong}\n"
                if $c && $c->{errors};
        }
        $text .= "\n";
    }
    return $text . $notes;
}

# One figure to reach: $is should be at least ($more) or at most $goal.
sub figure($what, $meaning, $is, $goal, $more)
{
    push @figures, [$what, $meaning, $is, $goal, $more];
}

sub figures()
{
    return '' if !@figures;
    my $text = "\nFigures to reach\n";
    my %n = (reached => 0, MISSED => 0, unknown => 0);
    for (@figures) {
        my ($what, $meaning, $is, $goal, $more) = @$_;
        my $known = defined $is && defined $goal;
        my $good = $known && ($more ? $is >= $goal : $is <= $goal);
        my $verdict = !$known ? 'unknown' : $good ? 'reached' : 'MISSED';
        $n{$verdict}++;
        $text .= sprintf "%-8s %-36s %9s  %-44s %9s\n", $verdict, $what,
            number($is), $meaning, number($goal);
    }
    return $text . "$n{reached} reached, $n{MISSED} missed, "
        . "$n{unknown} not measured\n";
}

1;
