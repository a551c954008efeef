//! The packages, on a real Debian with systemd: installed, leased, killed, stuck, restarted, cut off the power, upgraded,
//! removed; and what the units forbid, tried from inside them.
//!
//! The packages are made from the programs as the other journeys run them, by the command that makes the real ones. All
//! of it is one story in one machine, since a machine that is emulated takes minutes to boot.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use satellite_tests::checker::Verdict;
use satellite_tests::journey::{self, journey};
use satellite_tests::machine::{Machine, SERIAL};
use satellite_tests::peers::Peer;
use satellite_tests::process::{self, Process};
use satellite_tests::relay::Account;
use satellite_tests::rounds::rounds;
use satellite_tests::{programs, wait};
use serde_json::Value;

/// Whatever is waited for in a machine that may be emulated on a busy one.
const WITHIN: Duration = Duration::from_secs(600);
/// How soon systemd starts a program again that was killed.
const BACK_WITHIN_SECONDS: f64 = 10.0;
const RESTARTS: usize = 10;

fn main() -> ExitCode {
    const SCORES: &[Peer] = &[Peer::SystemdAnalyze];
    const FILES: &[Peer] = &[Peer::Debhelper, Peer::Lintian, Peer::AptFtparchive, Peer::Gpg];
    const MACHINE: &[Peer] = &[Peer::Debhelper, Peer::Qemu, Peer::Mmdebstrap, Peer::Cpio, Peer::Python];
    journey::run(vec![
        journey("each_unit_keeps_its_score", SCORES, scores),
        journey("lintian_finds_nothing_and_apt_takes_the_packages_from_whom_it_trusts", FILES, files),
        journey("installed_leased_killed_restarted_cut_off_upgraded_and_removed", MACHINE, story),
    ])
}

/// `systemd-analyze security`: 1.6 for the satellite with the host's metrics, 1.3 for the relay and for who asks disks.
fn scores(_: &Path) -> Result<()> {
    let units = [("satellite.service", 1.6), ("satellite-relay.service", 1.3), ("satellite-smart@.service", 1.3)];
    for (unit, most) in units {
        let mut analyze = Command::new("systemd-analyze");
        analyze
            .args(["security", "--offline=true", "--no-pager"])
            .arg(programs::workspace().join("systemd").join(unit));
        let said = process::run(&mut analyze, "")?.success()?;
        // A template is named with an instance.
        let (_, rest) = said.split_once("exposure level for ").with_context(|| said.clone())?;
        let score = rest.split_once(": ").and_then(|(_, rest)| rest.split(' ').next());
        let score: f64 = score.with_context(|| said.clone())?.parse()?;
        ensure!(score <= most, "{unit} has {score}, more than {most}:\n{said}");
    }
    Ok(())
}

fn files(dir: &Path) -> Result<()> {
    let packages = packages(dir)?;
    let mut lintian = Command::new("lintian");
    run(lintian.args(["--fail-on", "error,warning", "--allow-root"]).args(&packages), dir)?;

    let keys = make(dir, "keys")?;
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let mut key = Command::new("gpg");
    key.args([
        "--batch",
        "--passphrase",
        "",
        "--quick-generate-key",
        "Test <test@satellite.example>",
        "ed25519",
        "sign",
    ]);
    run(key.env("GNUPGHOME", &keys), dir)?;
    let served = dir.join("served");
    let mut repository = Command::new(programs::workspace().join("packaging/repository"));
    run(repository.arg(&served).args(&packages).env("GNUPGHOME", &keys), dir)?;
    run(Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", &keys), dir)?;
    apt(&make(dir, "good")?, &served)?;

    let list = served.join("dists/stable/InRelease");
    std::fs::write(&list, std::fs::read_to_string(&list)?.replace("Origin: Satellite", "Origin: Somebody"))?;
    ensure!(apt(&make(dir, "bad")?, &served).is_err(), "what was altered after it was signed is refused");
    Ok(())
}

/// Has apt, with nothing of this machine's own settings, read the repository and find both packages in it.
fn apt(dir: &Path, served: &Path) -> Result<()> {
    let list = dir.join("satellite.list");
    let (served, keyring) = (served.display(), served.join("satellite.gpg"));
    std::fs::write(&list, format!("deb [signed-by={}] file:{served} stable main\n", keyring.display()))?;
    for place in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(dir.join(place))?;
    }
    let apt_get = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        let option = |name: &str, path: &str| format!("{name}={}", dir.join(path).display());
        for option in [
            option("Dir::Etc::SourceList", "satellite.list"),
            option("Dir::Etc::SourceParts", "none"),
            option("Dir::State::Lists", "lists"),
            option("Dir::Cache", "cache"),
            "APT::Sandbox::User=".into(),
            "Debug::NoLocking=1".into(),
            "APT::Update::Error-Mode=any".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command.args(words);
        run(&mut command, dir)
    };
    apt_get(&["update"])?;
    let said = apt_get(&["download", "--print-uris", "satellite-agent", "satellite-relay"])?;
    ensure!(said.lines().filter(|line| line.contains("/pool/satellite-")).count() == 2, "{said}");
    Ok(())
}

/// Runs what a busy machine may be long about.
fn run(command: &mut Command, dir: &Path) -> Result<String> {
    let log = tempfile::Builder::new().suffix(".log").tempfile_in(dir)?;
    let ended = Process::start("a step", command, log.path())?.wait_for_end(WITHIN)?;
    let said = std::fs::read_to_string(log.path())?;
    ensure!(ended.success(), "{command:?}: {ended}\n{said}");
    Ok(said)
}

/// Both packages, made from the programs that the other journeys run.
fn packages(dir: &Path) -> Result<[PathBuf; 2]> {
    programs::programs()?;
    let mut build = Command::new(programs::workspace().join("packaging/build"));
    build.arg(dir.join("packages")).env("PROGRAMS", programs::profile_dir()?).env("VERSION", "0.1.0");
    // Packed fast: nobody keeps them.
    build.env("DPKG_DEB_COMPRESSOR_TYPE", "gzip").env("DPKG_DEB_COMPRESSOR_LEVEL", "1");
    run(&mut build, dir)?;
    let mut found =
        std::fs::read_dir(dir.join("packages"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    found.sort();
    <[PathBuf; 2]>::try_from(found).map_err(|found| anyhow::anyhow!("not two packages: {found:?}"))
}

/// The same package with a higher version.
fn upgraded(package: &Path, dir: &Path) -> Result<PathBuf> {
    let (tree, result) = (dir.join("tree"), dir.join("higher.deb"));
    let dpkg = |arguments: &[&Path], option: &str| {
        let mut command = Command::new("dpkg-deb");
        command.arg(option).args(arguments);
        run(command.env("DPKG_DEB_COMPRESSOR_TYPE", "gzip").env("DPKG_DEB_COMPRESSOR_LEVEL", "1"), dir)
    };
    dpkg(&[package, &tree], "--raw-extract")?;
    let control = tree.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control)?;
    std::fs::write(&control, text.replace("Version: 0.1.0\n", "Version: 0.2.0\n"))?;
    dpkg(&[&tree, &result], "--build")?;
    std::fs::remove_dir_all(&tree)?;
    Ok(result)
}

/// Both programs in the machine.
struct Scene {
    machine: Machine,
    dir: PathBuf,
}

/// A part of the story, for the message of a failure.
type Step = (&'static str, fn(&mut Scene) -> Result<()>);

fn story(dir: &Path) -> Result<()> {
    let [agent, relay] = packages(dir)?;
    let probe = programs::workspace().join("tests/machine/sandbox.pl");
    let (agent_higher, relay_higher) = (upgraded(&agent, &make(dir, "a")?)?, upgraded(&relay, &make(dir, "r")?)?);
    let brought: [(&Path, &str); 5] = [
        (&agent, "/opt/agent.deb"),
        (&relay, "/opt/relay.deb"),
        (&agent_higher, "/opt/agent-higher.deb"),
        (&relay_higher, "/opt/relay-higher.deb"),
        (&probe, "/opt/sandbox.pl"),
    ];
    let mut scene = Scene { machine: Machine::new(dir, &brought)?, dir: dir.to_owned() };
    scene.machine.boot()?;
    let steps: [Step; 12] = [
        ("install", Scene::install),
        ("lease", Scene::lease),
        ("host metrics", Scene::host_metrics),
        ("services and containers", Scene::services_and_containers),
        ("disks", Scene::disks),
        ("kill -9", Scene::kill),
        ("watchdog", Scene::stick),
        ("restarts", Scene::restart_under_load),
        ("power cut", Scene::cut_power),
        ("upgrade", Scene::upgrade),
        ("sandbox", Scene::sandbox),
        ("removal", Scene::remove),
    ];
    for (name, step) in steps {
        let started = wait::mono_ms();
        if let Err(error) = step(&mut scene) {
            let journal = scene.machine.run("journalctl --no-pager -n 60 -u satellite -u satellite-relay")?.stdout;
            return Err(error.context(format!("{name}; the journal ends:\n{journal}")));
        }
        journey::note(&format!("{name}: {} s", (wait::mono_ms() - started) / 1000));
    }
    Ok(())
}

/// The value of a series in what `satellite probe` printed, by the start of its line and something in it.
fn value(given: &str, name: &str, label: &str) -> Result<f64> {
    let told = |line: &&str| line.starts_with(name) && line.contains(label);
    let line = given.lines().find(told).with_context(|| format!("no {name} {label}: {given}"))?;
    let value = line.split(" # ").next().and_then(|line| line.split_whitespace().last()).context("a value")?;
    value.parse::<f64>().with_context(|| line.to_owned())
}

fn make(dir: &Path, name: &str) -> Result<PathBuf> {
    let made = dir.join(name);
    std::fs::create_dir(&made)?;
    Ok(made)
}

impl Scene {
    /// Nothing asks, nothing fails for want of a lease, and both run and will run after a boot.
    fn install(&mut self) -> Result<()> {
        self.machine.must("apt-get install -y /opt/agent.deb /opt/relay.deb")?;
        self.machine
            .must("systemctl is-active satellite satellite-relay; systemctl is-enabled satellite satellite-relay")?;
        self.machine.must("satellite status | grep -F 'needs a lease: run sudo satellite lease set'")?;
        self.machine.must("man -w satellite satellite-lease-set satellite-relay satellite-relay-lease-create")?;
        // Faster than the default, so that nobody waits.
        self.machine.must("sed -i 's/^commit_every.*/commit_every = \"1s\"/' /etc/satellite-relay/relay.toml")?;
        self.machine.must("systemctl reload satellite-relay").map(drop)
    }

    /// From the lease on it streams, with no restart by hand.
    fn lease(&mut self) -> Result<()> {
        self.machine.must(
            r#"
            cat >/root/load.toml <<'END'
[[device]]
name = "this-host"
collector = "host"
every = "2s"

[[device]]
name = "again"
collector = "host"
every = "1s"

[[device]]
name = "everyone"
collector = "host"
every = "1m"

  [[device.metric]]
  name = "processes"

[[device]]
name = "services"
collector = "systemd"
units = ["satellite*"]
every = "20s"

[[device]]
name = "containers"
collector = "docker"
every = "20s"

[[device]]
name = "disks"
collector = "smart"
timeout = "50s"
every = "1m"

[[device]]
name = "sealed"
collector = "http"
url = "http://127.0.0.1:9/"
auth = { secret = "sealed" }
every = "1m"
END
            satellite-relay lease create --name attic --relay https://localhost:8443 --json >/root/lease
            sed -n 's/.*"join_code": *"\([^"]*\)".*/\1/p' /root/lease | satellite lease set
            satellite-relay config set attic /root/load.toml"#,
        )?;
        self.wait_until_streaming()?;
        let restarts = self.machine.must("systemctl show satellite satellite-relay --property=NRestarts --value")?;
        ensure!(restarts.split_whitespace().all(|count| count == "0"), "restarted: {restarts}");
        Ok(())
    }

    /// What the sandbox must not falsify: the machine's file systems, its network, its clock; and what it hides is told.
    fn host_metrics(&mut self) -> Result<()> {
        self.machine.must("mount -t tmpfs -o size=7M,mode=755 tmpfs /home")?;
        let given = self.machine.must("satellite probe this-host")?;
        let value = |name: &str, label: &str| value(&given, name, label);
        ensure!(value("node_filesystem_readonly", "mountpoint=\"/\"}")? == 0.0, "the sandbox's own view:\n{given}");
        ensure!(value("node_filesystem_size_bytes", "mountpoint=\"/home\"")? == f64::from(7 << 20), "{given}");
        ensure!(!given.contains("mountpoint=\"/var/lib/satellite\""), "a mount of the sandbox:\n{given}");
        value("node_network_receive_bytes_total", "device=\"eth0\"")?;
        value("node_timex_maxerror_seconds", "")?;
        value("node_procs_running", "")?;
        let hidden = self.machine.run("satellite probe everyone")?.stdout;
        ensure!(hidden.contains("processes.conf"), "{hidden}");
        self.machine.must("umount /home").map(drop)
    }

    /// The sandbox lets it ask systemd; and it lets it ask Docker, here a program that knows of no container, from the
    /// moment that it is in the group of Docker's socket.
    fn services_and_containers(&mut self) -> Result<()> {
        let given = self.machine.must("satellite probe services")?;
        for unit in ["satellite.service", "satellite-relay.service"] {
            let labels = format!("{{name=\"{unit}\",state=\"active\",type=\"notify\"}}");
            ensure!(value(&given, "node_systemd_unit_state", &labels)? == 1.0, "{given}");
            ensure!(value(&given, "node_systemd_unit_start_time_seconds", unit)? > 1e9, "{given}");
            ensure!(value(&given, "systemd_unit_memory_bytes", unit)? > 1e6, "{given}");
            ensure!(value(&given, "systemd_unit_result", &format!("\"{unit}\",result=\"success\""))? == 1.0, "{given}");
        }
        let restarts = self.machine.must("systemctl show satellite --property=NRestarts --value")?;
        let told = value(&given, "node_systemd_service_restart_total", "\"satellite.service\"")?;
        ensure!(restarts.trim().parse::<f64>()? == told, "{restarts}: {given}");
        ensure!(value(&given, "node_systemd_version", "")? >= 200.0, "{given}");

        self.machine.must(
            r#"groupadd docker
             cat >/root/docker <<'END'
use IO::Socket::UNIX;
my $door = IO::Socket::UNIX->new(Local => "/run/docker.sock", Listen => 5) or die;
while (my $visitor = $door->accept) {
    while (<$visitor>) { last if /^\r?$/ }
    print $visitor "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";
}
END
             (perl /root/docker >/dev/null 2>&1 </dev/null & echo $! >/root/docker.pid)
             until [ -S /run/docker.sock ]; do sleep 0.1; done
             chgrp docker /run/docker.sock && chmod 660 /run/docker.sock"#,
        )?;
        let refused = self.machine.run("satellite probe containers")?.stdout;
        ensure!(refused.contains("SupplementaryGroups=docker"), "{refused}");
        self.machine.must(
            "mkdir /etc/systemd/system/satellite.service.d
             printf '[Service]\\nSupplementaryGroups=docker\\n' >/etc/systemd/system/satellite.service.d/docker.conf
             systemctl daemon-reload
             systemctl restart satellite",
        )?;
        let given = self.machine.must("satellite probe containers")?;
        ensure!(value(&given, "probe_success", "")? == 1.0, "{given}");
        self.sealed_secrets()?;
        self.machine.must(
            "kill $(cat /root/docker.pid)
             rm -r /run/docker.sock /etc/systemd/system/satellite.service.d
             systemctl daemon-reload",
        )?;
        self.wait_until_streaming()
    }

    /// The unit that may ask disks, enabled as its user enables it, and a real smartctl: it sees an NVMe drive through the
    /// unit's walls, and the satellite is told.
    fn disks(&mut self) -> Result<()> {
        let off = self.machine.run("satellite probe disks")?.stdout;
        ensure!(off.contains("sudo systemctl enable --now satellite-smart.socket"), "{off}");
        self.machine.must("test -c /dev/nvme0 && systemctl enable --now satellite-smart.socket")?;
        let given = self.machine.must("satellite probe disks")?;
        let nvme = "device=\"nvme0\"";
        ensure!(value(&given, "smartctl_device_read", nvme)? == 1.0, "{given}");
        ensure!(value(&given, "smartctl_device_smart_status", nvme)? == 1.0, "{given}");
        value(&given, "smartctl_device{", &format!("serial_number=\"{SERIAL}\""))?;
        value(&given, "smartctl_device_temperature", nvme)?;
        ensure!(value(&given, "probe_success", "")? == 1.0, "{given}");
        // More visits than a limit of systemd's own would let through: the socket stays open.
        self.machine.must(
            r#"perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Peer => $ARGV[0]) || die for 1..250' /run/satellite-smart.sock
             systemctl is-active satellite-smart.socket
             until [ "$(systemctl list-units --no-legend 'satellite-smart@*' | wc -l)" = 0 ]; do sleep 0.5; done"#,
        )?;
        self.machine.must("satellite probe disks | grep -F smartctl_device_read")?;
        self.machine.must("systemctl disable --now satellite-smart.socket").map(drop)
    }

    /// A secret that only this machine's systemd can open: nobody listens at that port, but without it nobody would know.
    fn sealed_secrets(&mut self) -> Result<()> {
        self.machine
            .must("printf 'loopback_ports = [9]\\n' >/etc/satellite/policy.toml; systemctl restart satellite")?;
        self.wait_until_streaming()?;
        let locked = self.machine.run("satellite probe sealed")?.stdout;
        ensure!(locked.contains("no secret `sealed`"), "{locked}");
        self.machine.must(
            "printf '[sealed]\\nhosts = [\"127.0.0.1\"]\\nprotocols = [\"http\"]\\npaths = [\"/\"]\\nvalue = \"of-this-machine\"\\n' |
                 systemd-creds encrypt --name=secrets.toml - /etc/satellite/secrets.cred
             printf '[Service]\\nLoadCredentialEncrypted=secrets.toml:/etc/satellite/secrets.cred\\n' \\
                 >/etc/systemd/system/satellite.service.d/secrets.conf
             systemctl daemon-reload
             systemctl restart satellite
             ! grep -q of-this-machine /etc/satellite/secrets.cred",
        )?;
        self.wait_until_streaming()?;
        let opened = self.machine.run("satellite probe sealed")?.stdout;
        ensure!(opened.contains("probe_success 0"), "{opened}");
        self.machine.must("rm /etc/satellite/secrets.cred /etc/satellite/policy.toml").map(drop)
    }

    /// `kill -9`: systemd starts it again within ten seconds, and the buffer goes on where it was.
    fn kill(&mut self) -> Result<()> {
        for unit in ["satellite", "satellite-relay"] {
            let killed: f64 = self
                .machine
                .must(&format!(
                    "cut -d' ' -f1 /proc/uptime; kill -9 $(systemctl show {unit} --property=MainPID --value)"
                ))?
                .trim()
                .parse()?;
            let again = self.wait_for_start_after(unit, killed)?;
            ensure!(again - killed <= BACK_WITHIN_SECONDS, "{unit} was back after {} s", again - killed);
            self.wait_until_streaming()?;
        }
        Ok(())
    }

    /// A program that is stopped feeds no watchdog.
    fn stick(&mut self) -> Result<()> {
        let stuck: f64 = self
            .machine
            .must("cut -d' ' -f1 /proc/uptime; kill -STOP $(systemctl show satellite --property=MainPID --value)")?
            .trim()
            .parse()?;
        self.wait_for_start_after("satellite", stuck)?;
        self.machine.must("journalctl --no-pager -u satellite | grep -i 'watchdog timeout'")?;
        self.wait_until_streaming()
    }

    /// While systemd holds the sockets, restarts refuse no connection, and nothing is lost.
    fn restart_under_load(&mut self) -> Result<()> {
        self.machine.must(
            "systemctl stop satellite-relay
             systemctl enable --now satellite-relay-web.socket satellite-relay-satellites.socket
             systemctl start satellite-relay
             cat >/root/knock <<'END'
while sleep 0.3; do
    for port in 8443 8444; do (: <>/dev/tcp/127.0.0.1/$port) 2>/dev/null || echo $port; done
done
END
             (bash /root/knock >/root/refused 2>&1 </dev/null & echo $! >/root/knock.pid)",
        )?;
        for _ in 0..RESTARTS {
            self.machine.must("systemctl restart satellite-relay")?;
        }
        self.machine.must("kill $(cat /root/knock.pid)")?;
        let refused = self.machine.must("cat /root/refused")?;
        ensure!(refused.is_empty(), "refused at {refused}");
        self.wait_until_streaming()
    }

    /// What was committed is still there, what was not is explained, and so is the time without power.
    fn cut_power(&mut self) -> Result<()> {
        for _ in 0..rounds(1) {
            self.machine.cut_power()?;
            self.machine.boot()?;
            self.wait_until_streaming()?;
        }
        let gaps: Value = serde_json::from_str(&self.machine.must("satellite gaps --json")?)?;
        let reasons: Vec<_> = gaps["gaps"].as_array().into_iter().flatten().map(|gap| gap["reason"].clone()).collect();
        ensure!(reasons.iter().any(|reason| reason == "stopped"), "nothing tells of the outage: {gaps}");
        let figures = self.machine.must(
            "systemctl show satellite satellite-relay --property=Id,MemoryCurrent,ActiveEnterTimestampMonotonic | xargs
             echo \"now $(cut -d' ' -f1 /proc/uptime) s\"
             dpkg-query --show --showformat '${Package} ${Installed-Size} KiB\n' 'satellite*'",
        )?;
        journey::note(figures.trim());
        Ok(())
    }

    /// Identity, settings and buffer stay.
    fn upgrade(&mut self) -> Result<()> {
        let who = |status: Value| (status["lease"]["satellite"].clone(), status["lease"]["relay"].clone());
        let settings = "cat /etc/satellite-relay/relay.toml";
        let before = (who(self.status()?), self.machine.must(settings)?);
        let said = self.machine.must("apt-get install -y /opt/agent-higher.deb /opt/relay-higher.deb")?;
        ensure!(said.contains("(0.2.0) over (0.1.0)"), "{said}");
        self.wait_until_streaming()?;
        let after = (who(self.status()?), self.machine.must(settings)?);
        ensure!(before == after, "before {before:?}, after {after:?}");
        self.settle()
    }

    /// Nothing is due any more, everything is stored or explained, and the checker finds all of it.
    fn settle(&mut self) -> Result<()> {
        self.machine.must("echo 'device = []' >/root/empty.toml; satellite-relay config set attic /root/empty.toml")?;
        wait::until_true("an empty buffer", WITHIN, || Ok(self.status()?["buffer"]["records"] == 0))?;
        let id = self.status()?["lease"]["satellite"].as_str().context("an id")?.to_owned();
        self.machine.must("systemctl stop satellite")?;
        wait::until_true("a balanced account", WITHIN, || {
            let account = self.account()?;
            Ok(account.balanced && account.waiting == 0 && account.due == account.stored + account.explained)
        })?;
        let account = self.account()?;
        self.machine
            .must("systemctl stop satellite-relay-web.socket satellite-relay-satellites.socket satellite-relay")?;
        let records = self.machine.must("tar -C /var/lib/satellite-relay -cf - records registry.db | base64 -w 0")?;
        let copy = make(&self.dir, "copy")?;
        let tar = copy.join("records.tar");
        std::fs::write(&tar, data_encoding::BASE64.decode(records.trim().as_bytes())?)?;
        process::run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&copy), "")?.success()?;
        let verdict = Verdict::of(&copy.join("records"), &[])?;
        verdict.must_be_whole()?;
        verdict.must_agree(&id, &account)?;
        ensure!(verdict.stored > 0 && verdict.reasons.contains_key("stopped"), "{:?}", verdict.reasons);
        Ok(())
    }

    /// The units' own walls, with the unit's program replaced: nothing is copied, nothing is softened.
    fn sandbox(&mut self) -> Result<()> {
        // The same outside of a unit, so that a probe that does nothing at all does not pass.
        let unbound = self.machine.must("perl /opt/sandbox.pl /var/tmp")?;
        ensure!(unbound.matches("ALLOWED").count() >= 20, "root itself may:\n{unbound}");
        for unit in ["satellite", "satellite-relay"] {
            let said = self.machine.must(&format!(
                "mkdir -p /run/systemd/system/{unit}.service.d
                 cat >/run/systemd/system/{unit}.service.d/probe.conf <<'END'
[Service]
Type=exec
WatchdogSec=0
Restart=no
RemainAfterExit=yes
ExecStart=
ExecStart=/usr/bin/perl /opt/sandbox.pl /var/lib/{unit}
StandardOutput=truncate:/opt/{unit}.probe
END
                 systemctl daemon-reload
                 systemctl start {unit}
                 until [ \"$(systemctl show {unit} --property=SubState --value)\" = exited ]; do
                     systemctl is-failed --quiet {unit} && journalctl --no-pager -n 20 -u {unit} && exit 1
                     sleep 0.5
                 done
                 cat /opt/{unit}.probe
                 systemctl stop {unit}
                 rm -r /run/systemd/system/{unit}.service.d
                 systemctl daemon-reload"
            ))?;
            ensure!(
                !said.contains("ALLOWED") && said.lines().count() == unbound.lines().count(),
                "{unit} may:\n{said}"
            );
        }
        Ok(())
    }

    /// `remove` keeps the state, `purge` nothing: no file, no unit, no user, no group.
    fn remove(&mut self) -> Result<()> {
        self.machine.must("apt-get remove -y satellite-agent satellite-relay")?;
        self.machine.must("test -d /var/lib/satellite/buffer && test -f /var/lib/satellite-relay/registry.db")?;
        self.machine.must("apt-get purge -y satellite-agent satellite-relay")?;
        let left = self.machine.must(
            "find / -xdev -not -path '/proc/*' -not -path '/opt/*' -not -path '/var/log/*' -not -path '/var/cache/*' -name '*satellite*'
             getent passwd satellite satellite-relay || true
             getent group satellite satellite-relay || true
             systemctl list-units --all --no-legend 'satellite*'",
        )?;
        ensure!(left.trim().is_empty(), "left behind:\n{left}");
        Ok(())
    }

    fn status(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.machine.must("satellite status --json")?)?)
    }

    fn account(&mut self) -> Result<Account> {
        Ok(serde_json::from_str(&self.machine.must("satellite-relay account attic --json")?)?)
    }

    /// Connected, and more is stored than before.
    fn wait_until_streaming(&mut self) -> Result<()> {
        wait::until_true("the link", WITHIN, || Ok(self.status()?["link"]["state"] == "connected"))?;
        let before = self.account().map_or(0, |account| account.stored);
        wait::until_true("records in the archive", WITHIN, || Ok(self.account()?.stored > before))
    }

    /// When systemd started the unit's program again, in seconds since the boot.
    fn wait_for_start_after(&mut self, unit: &str, moment: f64) -> Result<f64> {
        let ask = format!("systemctl show {unit} --property=ExecMainStartTimestampMonotonic --value");
        wait::until(&format!("a new start of {unit}"), WITHIN, || {
            let started = self.machine.must(&ask)?.trim().parse::<f64>()? / 1e6;
            Ok((started > moment).then_some(started))
        })
    }
}
