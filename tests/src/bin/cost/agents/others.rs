//! The agents of others: each scrapes or reads this host and sends to a sink in this program, which says yes to all.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use satellite_tests::link::Link;

use super::{Pace, queue_bytes};
use crate::meter::Span;
use crate::rivals::{Rival, Running, free_port};
use crate::table::Report;

/// What node_exporter reads beyond its defaults, so that it has about a thousand series.
const MORE_COLLECTORS: [&str; 12] = [
    "processes",
    "interrupts",
    "softnet",
    "tcpstat",
    "ethtool",
    "buddyinfo",
    "zoneinfo",
    "cgroups",
    "mountstats",
    "qdisc",
    "lnstat",
    "ksmd",
];

/// A pipeline of one or two programs.
#[derive(Debug)]
pub(crate) struct Other {
    name: String,
    parts: Vec<(Rival, Running)>,
    samples: Samples,
    wire: Wire,
    /// Where it buffers, if that can be looked at.
    queue: Option<PathBuf>,
    rss: Vec<f64>,
    cpu: Vec<f64>,
    cpu_of_parts: Vec<f64>,
    wire_each: Vec<f64>,
    queue_each: Vec<f64>,
}

/// How its samples are counted.
#[derive(Debug)]
enum Samples {
    /// So many a scrape.
    Scraped(u64),
    /// As they arrive.
    Counted(Arc<AtomicU64>),
}

/// How its bytes are counted.
#[derive(Debug)]
enum Wire {
    Link(Link),
    Counted(Arc<AtomicU64>),
}

impl Wire {
    fn bytes(&self) -> u64 {
        match self {
            Self::Link(link) => link.bytes_up() + link.bytes_down(),
            Self::Counted(bytes) => bytes.load(Ordering::Relaxed),
        }
    }
}

/// Starts those that are installed; the others are reported as skipped.
pub(crate) fn start(dir: &Path, pace: Pace, report: &mut Report) -> Vec<Other> {
    let scrapers =
        [(Rival::Vmagent, "node_exporter + vmagent"), (Rival::PrometheusAgent, "node_exporter + prometheus agent")];
    let mut others = Vec::new();
    let mut keep = |name: &str, needs: &[Rival], started: Result<Other>| match started {
        Ok(other) => others.push(other),
        Err(error) => {
            let missing = needs.iter().find_map(|rival| rival.find().err());
            for row in ["rss", "cpu", "wire-live"] {
                match &missing {
                    Some(why) => report.skipped(row, name, &format!("{why:#}")),
                    None => report.failed_for(row, name, &format!("{error:#}")),
                }
            }
        }
    };
    for (scraper, name) in scrapers {
        keep(name, &[Rival::NodeExporter, scraper], scraped(dir, pace, scraper, name));
    }
    keep("collectd", &[Rival::Collectd], collectd(dir, pace));
    others
}

fn scraped(dir: &Path, pace: Pace, scraper: Rival, name: &str) -> Result<Other> {
    scraper.find()?;
    let dir = dir.join(scraper.name());
    std::fs::create_dir_all(&dir)?;
    let (port, own_port) = (free_port()?, free_port()?);
    let mut arguments = vec![format!("--web.listen-address=127.0.0.1:{port}"), "--collector.vmstat.fields=.*".into()];
    arguments.extend(MORE_COLLECTORS.map(|collector| format!("--collector.{collector}")));
    let exporter = Rival::NodeExporter.start(&dir, &arguments, Some(port))?;
    let series = scrape(port)?;
    let link = Link::new()?;
    link.lead_to(Some(sink()?));
    let url = format!("http://127.0.0.1:{}/api/v1/write", link.port());
    let queue = dir.join("queue");
    let mut config = format!(
        "global: {{scrape_interval: {}s}}\nscrape_configs: [{{job_name: node, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n",
        pace.every_s
    );
    let file = dir.join("scrape.yml");
    let arguments = if scraper == Rival::Vmagent {
        vec![
            format!("-promscrape.config={}", file.display()),
            format!("-remoteWrite.tmpDataPath={}", queue.display()),
            format!("-remoteWrite.url={url}"),
            format!("-httpListenAddr=127.0.0.1:{own_port}"),
        ]
    } else {
        config.push_str(&format!("remote_write: [{{url: '{url}'}}]\n"));
        vec![
            "--enable-feature=agent".into(),
            format!("--config.file={}", file.display()),
            format!("--storage.agent.path={}", queue.display()),
            format!("--web.listen-address=127.0.0.1:{own_port}"),
        ]
    };
    std::fs::write(&file, config)?;
    let agent = scraper.start(&dir, &arguments, Some(own_port))?;
    let parts = vec![(Rival::NodeExporter, exporter), (scraper, agent)];
    // vmagent writes to its queue only what it could not send.
    let queue = (scraper == Rival::PrometheusAgent).then_some(queue);
    // `up` and four more of each scrape.
    Ok(Other::new(name, parts, Samples::Scraped(series + 5), Wire::Link(link), queue))
}

fn collectd(dir: &Path, pace: Pace) -> Result<Other> {
    Rival::Collectd.find()?;
    let dir = dir.join("collectd");
    std::fs::create_dir_all(&dir)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = socket.local_addr()?.port();
    let (values, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (of_thread, bytes_of_thread) = (Arc::clone(&values), Arc::clone(&bytes));
    std::thread::spawn(move || {
        let mut datagram = [0; 65_536];
        while let Ok(length) = socket.recv(&mut datagram) {
            bytes_of_thread.fetch_add(length as u64, Ordering::Relaxed);
            of_thread.fetch_add(values_in(&datagram[..length]), Ordering::Relaxed);
        }
    });
    let mut config = format!(
        "BaseDir \"{0}\"\nPIDFile \"{0}/pid\"\nInterval {1}\nTypesDB \"/usr/share/collectd/types.db\"\n",
        dir.display(),
        pace.every_s
    );
    for plugin in ["cpu", "memory", "disk", "df", "interface", "load", "network"] {
        config.push_str(&format!("LoadPlugin {plugin}\n"));
    }
    config.push_str(&format!("<Plugin network>\nServer \"127.0.0.1\" \"{port}\"\n</Plugin>\n"));
    let file = dir.join("collectd.conf");
    std::fs::write(&file, config)?;
    let arguments = ["-f".into(), "-C".into(), file.display().to_string()];
    let running = Rival::Collectd.start(&dir, &arguments, None)?;
    let parts = vec![(Rival::Collectd, running)];
    Ok(Other::new("collectd (UDP, no buffer, no TLS)", parts, Samples::Counted(values), Wire::Counted(bytes), None))
}

/// Values in a datagram of collectd's protocol: parts of type 6.
fn values_in(mut datagram: &[u8]) -> u64 {
    let mut values = 0;
    while let Some((head, _)) = datagram.split_first_chunk::<6>() {
        let [kind_high, kind_low, length_high, length_low, count_high, count_low] = *head;
        if u16::from_be_bytes([kind_high, kind_low]) == 6 {
            values += u64::from(u16::from_be_bytes([count_high, count_low]));
        }
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        datagram = datagram.get(length.max(4)..).unwrap_or_default();
    }
    values
}

impl Other {
    fn new(name: &str, parts: Vec<(Rival, Running)>, samples: Samples, wire: Wire, queue: Option<PathBuf>) -> Self {
        let cpu_of_parts = vec![0.0; parts.len()];
        let (rss, cpu, wire_each, queue_each) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { name: name.into(), parts, samples, wire, queue, rss, cpu, cpu_of_parts, wire_each, queue_each }
    }

    /// A moment to measure from: meters, bytes, samples; and of the queue, with the bytes.
    pub(crate) fn start(&self) -> (Vec<Span>, u64, u64) {
        let counted = match &self.samples {
            Samples::Scraped(_) => queue_bytes(self.queue.as_deref()),
            Samples::Counted(values) => values.load(Ordering::Relaxed),
        };
        (self.parts.iter().map(|(_, running)| running.meter.start()).collect(), self.wire.bytes(), counted)
    }

    /// What it took since.
    pub(crate) fn end(
        &mut self,
        (spans, wire_before, counted_before): (Vec<Span>, u64, u64),
        pace: Pace,
    ) -> Result<()> {
        let mut cpu_s = Vec::new();
        let (mut wall_s, mut rss_kib) = (0.0, 0.0);
        for ((_, running), span) in self.parts.iter().zip(spans) {
            let (cpu, wall) = running.meter.since(span);
            cpu_s.push(cpu);
            wall_s = wall;
            rss_kib += running.meter.memory()?.rss_kib;
        }
        let samples = match &self.samples {
            Samples::Scraped(each) => *each as f64 * wall_s / pace.every_s as f64,
            Samples::Counted(values) => (values.load(Ordering::Relaxed) - counted_before).max(1) as f64,
        };
        self.rss.push(rss_kib / 1024.0);
        self.cpu.push(cpu_s.iter().sum::<f64>() * 1e6 / samples);
        self.cpu_of_parts = cpu_s.iter().map(|cpu| cpu * 1e6 / samples).collect();
        self.wire_each.push((self.wire.bytes() - wire_before) as f64 / samples);
        if self.queue.is_some() {
            let grown = queue_bytes(self.queue.as_deref()).saturating_sub(counted_before);
            self.queue_each.push(grown as f64 / samples);
        }
        Ok(())
    }

    pub(crate) fn report(&self, report: &mut Report) {
        let versions: Vec<String> = self.parts.iter().map(|(rival, _)| rival.version()).collect();
        let versions = versions.join(", ");
        let each = match self.samples {
            Samples::Scraped(each) => format!("{each} samples a scrape"),
            Samples::Counted(_) => "its own small set".into(),
        };
        let parts: Vec<String> = self
            .parts
            .iter()
            .zip(&self.cpu_of_parts)
            .map(|((rival, _), cpu)| format!("{} {cpu:.1}", rival.name()))
            .collect();
        report.add("rss", &self.name, self.rss.clone(), format!("{each}; {versions}"));
        report.add("cpu", &self.name, self.cpu.clone(), format!("{}; no TLS", parts.join(", ")));
        report.add("wire-live", &self.name, self.wire_each.clone(), "payload both ways, no TLS");
        if !self.queue_each.is_empty() {
            report.add("buffer", &self.name, self.queue_each.clone(), "its WAL, not fsynced");
        }
    }
}

/// Lines of a page that are samples.
fn scrape(port: u16) -> Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("the exporter's page")?;
    let (_, body) = page.split_once("\r\n\r\n").context("a body")?;
    Ok(body.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count() as u64)
}

/// Takes every POST and answers 204.
fn sink() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who hangs up has had its answers.
            std::thread::spawn(move || drop(swallow(&stream)));
        }
    });
    Ok(address)
}

fn swallow(mut stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        while reader.read_line(&mut line)? > 2 {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
            line.clear();
        }
        if line.is_empty() {
            return Ok(());
        }
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_collectd_datagram_are_counted() {
        // A host part of eight bytes, then two values.
        let mut datagram = vec![0, 0, 0, 8, b'n', b'a', b's', 0];
        datagram.extend_from_slice(&[0, 6, 0, 24, 0, 2]);
        datagram.extend_from_slice(&[0; 18]);
        assert_eq!(values_in(&datagram), 2);
        assert_eq!(values_in(&[0, 6, 0]), 0);
    }
}
