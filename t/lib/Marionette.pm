# Marionette.pm - Firefox without a screen, driven by its Marionette socket.
#
# Commands and answers are JSON arrays, each after its length and a colon:
# [0, id, name, parameters] and [1, id, error, result].

package Marionette;
use v5.36;
use JSON::PP;
use Weir;

# Start Firefox with a new profile.  %o: prefs => { name => value }, trust =>
# [ PEM files of CAs ].  HOME is the profile's, too.
sub start($class, %o)
{
    my $dir  = scratch('firefox', 1);
    my $port = free_port();
    my %prefs = (
        'marionette.port' => 0 + $port,
        'app.update.enabled' => \0, 'browser.shell.checkDefaultBrowser' => \0,
        'datareporting.policy.dataSubmissionEnabled' => \0,
        'toolkit.telemetry.enabled' => \0, 'extensions.update.enabled' => \0,
        'browser.safebrowsing.malware.enabled' => \0,
        'browser.safebrowsing.phishing.enabled' => \0,
        'network.captive-portal-service.enabled' => \0,
        'network.connectivity-service.enabled' => \0,
        'extensions.webextensions.restrictedDomains' => '',
        'xpinstall.signatures.required' => \0,
        ($o{prefs} // {})->%*);
    my $json = JSON::PP->new->allow_nonref->canonical;
    spew("$dir/user.js", join '', map {
        sprintf "user_pref(%s, %s);\n", map { $json->encode($_) }
            $_, $prefs{$_}
    } sort keys %prefs);
    my @db = ('-d', "sql:$dir");
    run([ 'certutil', @db, '-N', '--empty-password' ])->{exit} == 0
        or die "certutil does not make a database\n";
    my $n = 0;
    for my $pem ($o{trust}->@*) {
        run([ 'certutil', @db, '-A', '-t', 'C,,', '-n', 'ca' . ++$n, '-i',
            $pem ])->{exit} == 0 or die "certutil does not take $pem\n";
    }
    my $p = start_process([ 'firefox-esr', '--headless', '--marionette',
        '--no-remote', '--profile', $dir ],
        env => { HOME => $dir, MOZ_DISABLE_CONTENT_SANDBOX => 1,
            MOZ_HEADLESS => 1 });
    my $self = bless { process => $p, n => 0 }, $class;
    my $wire = wait_for('Firefox', sub {
        die "Firefox has ended: ", slurp($p->{err}) if !kill 0, $p->{pid};
        return eval { Weir::Wire->dial('127.0.0.1', $port) };
    }, 90);
    $wire->{limit} = 90;
    $self->{wire} = $wire;
    $self->get; # who it is
    $self->say('WebDriver:NewSession', {});
    return $self;
}

sub get($self)
{
    my ($len) = $self->{wire}->get_until(qr/:/) =~ /^(\d+):$/
        or die 'Firefox has ended: ', slurp($self->{process}{err});
    return JSON::PP->new->utf8->decode($self->{wire}->get($len));
}

# A command; its result.  Dies with what Firefox says if it fails.
sub say($self, $name, $parameters)
{
    my $text = JSON::PP->new->utf8->encode(
        [ 0, ++$self->{n}, $name, $parameters ]);
    $self->{wire}->put(length($text) . ":$text");
    my (undef, undef, $error, $result) = $self->get->@*;
    die "$name: $error->{error}: $error->{message}\n" if $error;
    return $result;
}

# An extension whose background script this is, with these permissions.
sub extend($self, $script, @permissions)
{
    my $dir = scratch('extension', 1);
    spew("$dir/background.js", $script);
    spew("$dir/manifest.json", encode_json({
        manifest_version => 2, name => 'test', version => '1',
        permissions => \@permissions,
        browser_specific_settings => { gecko => { id => 'test@good.test' } },
        background => { scripts => ['background.js'] },
    }));
    return $self->say('Addon:Install', { path => $dir, temporary => \1 });
}

sub visit($self, $url) { $self->say('WebDriver:Navigate', { url => $url }) }

# What a script says, which calls its last argument back.
sub ask($self, $script)
{
    return $self->say('WebDriver:ExecuteAsyncScript', { script => $script,
        args => [], scriptTimeout => 60_000 })->{value};
}

sub stop($self)
{
    eval { $self->say('Marionette:Quit', { flags => ['eForceQuit'] }) };
    return eval { reap($self->{process}, 30) };
}

1;
