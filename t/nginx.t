#!/usr/bin/perl
# nginx as the origin: a server nobody here wrote, in the clear and in TLS.
use v5.36;
use Digest::MD5 qw(md5_hex);
use Test::More;
use Weir;

my $certs = certs();
my $root  = scratch('nginx', 1);
my ($http, $https) = (free_port(), free_port());
mkdir "$root/$_" for qw(www tmp www/put);
my $data = join '', map { pack 'N', $_ * 2654435761 % 2**32 } 1 .. 2_500_000;
spew("$root/www/big", $data);
spew("$root/www/small", 'a small file');
spew("$root/www/index.html", '<p>index</p>');
my $tmp = join "\n", map { "${_}_temp_path $root/tmp;" }
    qw(client_body proxy fastcgi uwsgi scgi);
spew("$root/nginx.conf", <<"END");
daemon off;
master_process off;
pid $root/pid;
error_log $root/error;
events { worker_connections 256; }
http {
    access_log $root/access;
    $tmp
    types { text/html html; }
    client_max_body_size 100m;
    ssl_certificate $certs->{good}{cert};
    ssl_certificate_key $certs->{good}{key};
    ssl_session_cache shared:s:1m;
    server {
        listen 127.0.0.1:$http;
        listen 127.0.0.1:$https ssl;
        root $root/www;
        add_header X-Seen-Via \$http_via;
        location /resumed { keepalive_timeout 0; return 200 "\$ssl_session_reused"; }
        location /requests { return 200 "\$connection_requests"; }
        location /moved { return 302 /small; }
        location /gone { return 404 "no such thing"; }
        location /put { dav_methods PUT; }
        location /close { keepalive_timeout 0; return 200 "closed"; }
        location /gzip { gzip on; gzip_min_length 1; gzip_types *; alias $root/www/; }
    }
}
END
my $nginx = start_process([ (grep { -x } '/usr/sbin/nginx',
    map { "$_/nginx" } split /:/, $ENV{PATH})[0], '-p', $root, '-e',
    "$root/error", '-c', "$root/nginx.conf" ]);
wait_for('nginx to listen', sub {
    IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $https);
});

my $w = Weir->start(set => [ "resolve.good.test=127.0.0.1:$https",
    "upstream.upstream_ca=$certs->{ca}{cert}", 'proxy.via=tester' ]);

for my $case ([ 'in the clear', "http://127.0.0.1:$http" ],
    [ 'intercepted', 'https://good.test' ],
    [ 'in a tunnel', "http://127.0.0.1:$http", '-p' ]) {
    my ($name, $url, @more) = @$case;
    my $get = sub (@args) { curl($w, '--cacert', $w->ca, @more, @args) };
    is $get->("$url/small")->{out}, 'a small file', "$name: a small file";
    is $get->('-0', "$url/small")->{out}, 'a small file', "$name: HTTP/1.0";
    is md5_hex($get->("$url/big")->{out}), md5_hex($data), "$name: 10 MB";
    my $r = $get->('-r', '1000-1999', "$url/big");
    is $r->{code}, 206, "$name: a range";
    ok $r->{out} eq substr($data, 1000, 1000), "$name: of those bytes";
    like $get->('-I', "$url/big")->{out}, qr/^Content-Length: 10000000/m,
        "$name: HEAD";
    is $get->("$url/gone")->{code}, 404, "$name: 404 passes";
    is $get->('-L', "$url/moved")->{out}, 'a small file',
        "$name: a redirection";
    is $get->('-T', "$root/www/big", "$url/put/up$$")->{code} =~ /^20[14]$/,
        1, "$name: PUT of 10 MB";
    ok slurp("$root/www/put/up$$") eq $data, "$name: is stored whole";
    is md5_hex($get->('--compressed', "$url/gzip/big")->{out}),
        md5_hex($data), "$name: chunks, compressed";
    my $etag = $get->('-I', "$url/small")->{out} =~ /^ETag: (\S+)/m ? $1 : '';
    is $get->('-H', "If-None-Match: $etag", "$url/small")->{code}, 304,
        "$name: 304";
    my $many = $get->(map { "$url/requests" } 1 .. 10);
    is length($many->{out}) >= 10, 1, "$name: ten on one connection";
    is $get->(("$url/close") x 3)->{out}, 'closed' x 3,
        "$name: an origin that closes each time";
    like $get->('-i', "$url/small")->{out}, qr/^X-Seen-Via: 1\.1 tester/m,
        "$name: as a proxied request";
}
{ # many at once
    my @urls = map { ('-o', "$root/out$_", "https://good.test/big") } 1 .. 12;
    my $r = curl($w, '--cacert', $w->ca, '-Z', '--no-progress-meter', @urls);
    is $r->{exit}, 0, 'curl -Z: twelve at once';
    is scalar(grep { slurp("$root/out$_") eq $data } 1 .. 12), 12,
        'all of them whole';
}
{ # TLS sessions are resumed upstream
    my @got = map {
        curl($w, '--cacert', $w->ca, 'https://good.test/resumed')->{out}
    } 1 .. 4;
    is $got[-1], 'r', 'TLS to the origin is resumed' or diag "@got";
}
{ # connections to the origin are used again, also for new clients
    my @got = map {
        curl($w, '--cacert', $w->ca, 'https://good.test/requests')->{out}
    } 1 .. 5;
    cmp_ok $got[-1], '>', 1, 'a new client gets a used connection';
}
$w->stop;
stop_process($nginx);
is slurp("$root/error") =~ /\[(?:error|crit|alert|emerg)\](?!.*No such file)/,
    '', 'nginx has nothing to complain of'
    or diag slurp("$root/error");
done_testing;
