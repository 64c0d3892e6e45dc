#!/usr/bin/perl
# The command line: options, exit codes, which file is read, what is said
# about a bad one.
use v5.36;
use Test::More;
use Weir;

my $any = '127.0.0.1:0';

# ---- -V, -h, usage
{
    my $r = weir_run(['-V']);
    is $r->{exit}, 0, '-V: exit 0';
    like $r->{out}, qr/^weir \d+\.\d+/, '-V: the version';
    $r = weir_run(['-h']);
    is $r->{exit}, 0, '-h: exit 0';
    like $r->{out}, qr/\Q$_\E\b/, "-h: names $_"
        for qw(-c -t -q -v -V -h --set);
    for my $args ([ '-x' ], [ '--nonsense' ], [ '-c' ], [ '--set' ],
        [ 'extra' ], [ '-t', 'extra' ]) {
        $r = weir_run($args);
        is $r->{exit}, 2, "@$args: exit 2";
        like $r->{err}, qr/usage|weir -h/i, "@$args: says how";
        is $r->{out}, '', "@$args: on standard error";
    }
}

# ---- -t
sub check($text, @args)
{
    my $file = spew(scratch('proxy.ini'), $text);
    my $r = weir_run([ '-t', '-c', $file, @args ]);
    return ($r->{exit}, $r->{out} . $r->{err}, $file);
}
{
    my ($exit, $said) = check("[proxy]\nlisten = $any\n");
    is $exit, 0, '-t: a good file';
    ($exit) = check('');
    is $exit, 0, '-t: an empty one';
    ($exit) = check("; a comment\n# another\n[log]\nlevel = debug\n");
    is $exit, 0, '-t: comments';
    is weir_run([ '-t', '-c', '/nowhere/proxy.ini' ])->{exit}, 1,
        '-t: a file that is not there';
    like weir_run([ '-t', '-c', '/nowhere/proxy.ini' ])->{err},
        qr{/nowhere/proxy\.ini}, 'which is named';
    my $home = scratch('home', 1);
    is weir_run(['-t'], home => $home)->{exit}, 0, '-t without a file';
    ok !-e "$home/.weir", 'makes no CA';
}

for my $case (
    # text, line, section, key
    [ "[proxy]\nlisen = x\n",                    2, 'proxy', 'lisen' ],
    [ "[proxy]\n\n# c\nworkers = many\n",        4, 'proxy', 'workers' ],
    [ "[proxy]\nworkers = 0\n",                  2, 'proxy', 'workers' ],
    [ "[proxy]\nworkers = -1\n",                 2, 'proxy', 'workers' ],
    [ "[proxy]\nworkers = 99999999999999\n",     2, 'proxy', 'workers' ],
    [ "[proxy]\nworkers = 5x\n",                 2, 'proxy', 'workers' ],
    [ "[proxy]\nworkers =\n",                    2, 'proxy', 'workers' ],
    [ "[proxy]\nlisten = nonsense:port\n",       2, 'proxy', 'listen' ],
    [ "[proxy]\nlisten = 127.0.0.1:99999\n",     2, 'proxy', 'listen' ],
    [ "[intercept]\nenable = perhaps\n",         2, 'intercept', 'enable' ],
    [ "[intercept]\nexcept = 10.0.0.0/99\n",     2, 'intercept', 'except' ],
    [ "[intercept]\nonly = a b:0:c\n",           2, 'intercept', 'only' ],
    [ "[resolve]\na.test = not an address\n",    2, 'resolve', 'a.test' ],
    [ "[resolve]\na.test = 127.0.0.1:0x\n",      2, 'resolve', 'a.test' ],
    [ "[log]\nlevel = loud\n",                   2, 'log', 'level' ],
    [ "[log]\nformat = xml\n",                   2, 'log', 'format' ],
    [ "[upstream]\nupstream_ca = /nowhere\n",    2, 'upstream', 'upstream_ca' ],
) {
    my ($text, $line, $section, $key) = @$case;
    my ($exit, $said, $file) = check($text);
    my $name = $text =~ s/\n/ /gr;
    is $exit, 1, "$name: exit 1";
    like $said, qr/^(?:weir: )?\Q$file\E:$line: \[$section\] \Q$key\E: \S/m,
        "$name: file, line, section, key";
    like $said, qr/allowed|did you mean/, "$name: what is allowed";
}
{
    my ($exit, $said, $file) = check("[prox]\nlisten = $any\n");
    is $exit, 1, 'an unknown section';
    like $said, qr/\Q$file\E:\d+: \[prox\]/, 'is named';
    ($exit, $said, $file) = check("listen = $any\n");
    is $exit, 1, 'a key outside of sections';
    ($exit, $said, $file) = check("[proxy]\nnonsense\n");
    is $exit, 1, 'a line that is neither';
    like $said, qr/\Q$file\E:2:/, 'is named';
    ($exit, $said) = check('', '--set', 'proxy.workers=none');
    is $exit, 1, '--set is checked as well';
    like $said, qr/--set.*\[?proxy\]?[ .]workers/, 'and named';
    for my $set ('workers=1', 'proxy.workers', 'nothing.here=1', '=') {
        ($exit) = check('', '--set', $set);
        isnt $exit, 0, "--set $set";
    }
}

# ---- which file: ./proxy.ini, XDG_CONFIG_HOME, (/etc), defaults
{
    my $home = scratch('home', 1);
    my $xdg  = scratch('xdg', 1);
    my $cwd  = scratch('cwd', 1);
    mkdir "$xdg/weir";
    # a mistake in each shows which one was read
    spew("$xdg/weir/proxy.ini", "[xdg]\nx = y\n");
    spew("$cwd/proxy.ini", "[cwd]\nx = y\n");
    my $given = spew(scratch('given'), "[given]\nx = y\n");
    my %in = (home => $home, cd => $cwd, env => { XDG_CONFIG_HOME => $xdg });
    like weir_run([ '-t', '-c', $given ], %in)->{err}, qr/\[given\]/,
        '-c FILE is the file';
    like weir_run(['-t'], %in)->{err}, qr/\[cwd\]/, './proxy.ini comes first';
    unlink "$cwd/proxy.ini";
    like weir_run(['-t'], %in)->{err}, qr/\[xdg\]/,
        'then $XDG_CONFIG_HOME/weir/proxy.ini';
    mkdir "$home/.config";
    mkdir "$home/.config/weir";
    spew("$home/.config/weir/proxy.ini", "[config]\nx = y\n");
    like weir_run(['-t'], home => $home, cd => $cwd)->{err}, qr/\[config\]/,
        'which is ~/.config if it is not set';
    unlink "$home/.config/weir/proxy.ini", "$xdg/weir/proxy.ini";
    is weir_run(['-t'], %in)->{exit}, 0, 'then the defaults'
        if !-e '/etc/weir/proxy.ini';
}

# ---- --set wins over the file
{
    my $w = Weir->start(conf => "[proxy]\nlisten = 127.0.0.1:1\nvia = file\n",
        set => [ 'proxy.via=first', 'proxy.via=last' ]);
    my (undef, $got) = through($w,
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    is field($got, 'via'), '1.1 last', '--set wins, the last one of them';
    $w->stop;
}
{
    my $w = Weir->start(listen => 'conf', conf =>
            "[proxy]\nlisten = $any\n[log]\nlevel = info\n");
    is curl(undef, 'http://' . $w->addr . '/')->{code}, 200,
        'listen from the file';
    $w->stop;
}

# ---- -q and -v
{
    my $ask = sub ($w) {
        my $c = $w->client;
        $c->ask('GET', 'http://127.0.0.1:' . closed_port() . '/marked');
        $c->close;
    };
    my $v = Weir->start(args => ['-v']);
    $ask->($v);
    ok $v->wait_log(qr/\bstate\b.*\brequest\b/), '-v shows the states by name';
    $v->stop;
    my $port = free_port();
    my $home = scratch('home', 1);
    my $q = start_process([ Weir::binary(), Weir::weir_sets(), '-q', '--set',
        "proxy.listen=127.0.0.1:$port" ], cd => $home,
        env => { HOME => $home });
    wait_for('the quiet one to listen', sub {
        IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port)
    });
    is Weir::Wire->dial('127.0.0.1', $port)->ask('GET',
        'http://127.0.0.1:' . closed_port() . '/marked')->{status}, 502,
        '-q: works';
    is stop_process($q), 0, '-q: ends with 0';
    is slurp($q->{out}), '', '-q: says nothing';
    unlike slurp($q->{err}), qr/marked/, '-q: nor about each exchange';
    my $n = Weir->start;
    $ask->($n);
    ok $n->wait_log(qr/marked/), 'neither: a line for each exchange';
    $n->stop;
    unlike $n->log, qr/\bstate\b/, 'and no states';
}

done_testing;
