#!/usr/bin/perl
# What a unit's program must not be able to do, tried from inside the unit: a line each, `refused` or `ALLOWED`.
# The argument is a folder that the unit may write. Run by root outside of a unit, nearly everything is allowed.
use strict;
use warnings;
use Socket;

my ($own) = @ARGV;
my $file = "$own/probe";

sub reads { open(my $in, "<", $_[0]) or return 0; return defined(sysread($in, my $byte, 1)); }
sub writes { open(my $out, ">>", $_[0]) or return 0; close($out); unlink($_[0]) if $_[0] =~ /probe/; return 1; }
sub asks { my ($number, @arguments) = @_; return syscall($number, @arguments) != -1; }
sub makes_device { my $made = asks(133, my $name = "$file.device", 0060600, 0xfe00); unlink("$file.device"); return $made; }
sub makes_setuid {
    open(my $out, ">", "$file.setuid") or return 0;
    my $made = chmod(04755, "$file.setuid") && (stat("$file.setuid"))[2] & 04000;
    unlink("$file.setuid");
    return $made;
}

sub traces {
    my $other = fork() // return 0;
    if (!$other) { sleep(60); exit; }
    my $can = asks(101, 16, $other, 0, 0);
    kill(9, $other);
    waitpid($other, 0);
    return $can;
}

my @tried = (
    ["reading /etc/shadow", sub { reads("/etc/shadow") }],
    ["reading root's files", sub { reads("/root/.bashrc") }],
    ["writing /usr", sub { writes("/usr/probe") }],
    ["writing /etc", sub { writes("/etc/probe") }],
    ["writing /var", sub { writes("/var/probe") || writes("/var/lib/probe") }],
    ["writing /home", sub { writes("/home/probe") }],
    ["writing /proc/sys", sub { writes("/proc/sys/kernel/hostname") }],
    ["writing /sys", sub { writes("/sys/block/vda/queue/read_ahead_kb") }],
    ["reading /dev/vda", sub { reads("/dev/vda") }],
    ["reading /dev/sda", sub { reads("/dev/sda") }],
    ["reading /dev/mem", sub { reads("/dev/mem") }],
    ["reading /dev/kmsg", sub { reads("/dev/kmsg") }],
    ["making a device", \&makes_device],
    ["a raw socket", sub { socket(my $raw, AF_INET, SOCK_RAW, 1) }],
    ["a packet socket", sub { socket(my $packet, 17, SOCK_RAW, 0x0300) }],
    ["seeing others' processes", sub { -d "/proc/1" }],
    ["tracing another process", \&traces],
    ["signalling the first process", sub { kill(0, 1) }],
    ["a mount", sub { asks(165, my $none = "none", my $place = "/mnt", my $kind = "tmpfs", 0, 0) }],
    ["setting the clock", sub { asks(227, 0, my $time = pack("qq", time, 0)) }],
    ["memory to write and run", sub { asks(9, 0, 4096, 7, 0x22, -1, 0) }],
    ["a program for the kernel", sub { asks(321, 0, my $map = pack("LLLL", 2, 4, 4, 1) . "\0" x 112, 128) }],
    ["a setuid file", \&makes_setuid],
    ["real-time scheduling", sub { asks(144, 0, 1, my $priority = pack("l", 1)) }],
    ["a user namespace", sub { asks(272, 0x10000000) }],
    ["a network namespace", sub { asks(272, 0x40000000) }],
    ["becoming root", sub { $> = 0; $> == 0 }],
);
print $_->[1]->() ? "ALLOWED" : "refused", " $_->[0]\n" for @tried;
