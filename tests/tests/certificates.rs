//! Certificates over months, in seconds: the relay's real authority, enrolment and registry under a clock that is turned.
//!
//! Two hundred satellites renew, lose answers, are away for months and recover; some are copied, some revoked. Whatever
//! happens: at most one certificate of each is current and at most one stands beside it for a while, who was revoked
//! never comes back, and the registry holds what is in force and not what ever was. And what TLS itself refuses at the
//! satellites' door, by the same clock.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};
use satellite_agent::credential::key::Key;
use satellite_agent::credential::rotation::Renewal;
use satellite_relay::authority::{Authority, Door, Names};
use satellite_relay::data_dir::DataDir;
use satellite_relay::enrolment::{Enrolment, Limits, Refusal, SessionUrl};
use satellite_relay::registry::{CertificateState, NewLease, Registry, sha256_hex};
use satellite_relay::session::handshake::{Presented, judge_certificate, judge_token};
use satellite_shared::clock::{Clock, ManualClock};
use satellite_shared::enrolment::{ChallengeRequest, EnrolRequest, Enrolled, RecoverRequest};
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::to_relay::Authenticate;
use satellite_shared::wire::to_satellite::RefusalCode;
use satellite_tests::journey::{self, journey};
use satellite_tests::rounds::{Dice, first_seed, rounds};
use satellite_tests::wait;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// How long one turn of the clock is.
const TURN_MS: u64 = 6 * 3_600_000;
const TURNS: u32 = 4 * 91;
const SATELLITES: usize = 200;
/// What one satellite may have in the registry at any time: what is pending, in force, and ended but not yet expired.
const ROWS_MAX: usize = 24;

fn main() -> ExitCode {
    journey::run(vec![
        journey("certificates_live_for_months_and_none_that_ended_comes_back", &[], months),
        journey("tls_refuses_what_is_not_of_this_authority_for_clients_and_now", &[], strangers),
        journey("a_ticket_from_elsewhere_opens_nothing", &[], tickets),
    ])
}

/// The parts of a relay that the credential way goes through.
struct Office {
    registry: Registry,
    authority: Authority,
    enrolment: Enrolment,
    clock: Arc<ManualClock>,
}

impl Office {
    async fn open(dir: &Path) -> Result<Self> {
        let registry = Registry::open(dir).await?;
        // It begins now, since the clients of the handshakes go by the machine's clock.
        let begin_ms = wait::wall_ms();
        let authority = Authority::load_or_create(&DataDir::open(dir)?, begin_ms)?;
        authority.renew_server_certificate(&Names::of_this_machine(), begin_ms)?;
        let clock = Arc::new(ManualClock::new(begin_ms, 0));
        let limits = Limits { refusal_after: Duration::ZERO, ..Limits::default() };
        let at = SessionUrl::Fixed("wss://localhost:8444".into());
        let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let enrolment = Enrolment::new(registry.clone(), authority.clone(), as_clock, at, &limits);
        Ok(Self { registry, authority, enrolment, clock })
    }

    fn now_ms(&self) -> i64 {
        self.clock.now().wall_ms
    }

    async fn enrol(&self, name: &str, dice: &mut Dice) -> Result<Satellite> {
        let mut bits = [0u8; 32];
        bits.iter_mut().for_each(|byte| *byte = dice.roll().to_le_bytes()[0]);
        let token = Token::from_bits(TokenKind::Lease, bits);
        let mut id = [0u8; 10];
        id.copy_from_slice(&bits[..10]);
        let lease = NewLease {
            id: LeaseId::from_bits(id),
            satellite: SatelliteId::from_bits(id),
            name: name.into(),
            token_sha256: sha256_hex(token.expose().as_bytes()),
            relay_url: "https://localhost:8443".into(),
            now_ms: self.now_ms(),
            expires_at_ms: self.now_ms() + HOUR_MS,
            replace: false,
        };
        self.registry.create_lease(&lease).await?;
        let key = Key::generate()?;
        let csr = key.request()?;
        let request =
            EnrolRequest { lease: lease.id, token, csr, hostname: name.into(), agent_version: "0.1.0".into() };
        let enrolled = self.enrolment.enrol(&request, [127, 0, 0, 1].into()).await?;
        Ok(Satellite::new(enrolled, key))
    }

    /// What the satellites' door does with this certificate and token.
    async fn connect(&self, who: &Papers) -> Result<Result<(), Shut>> {
        if self.now_ms() >= who.not_after_ms {
            return Ok(Err(Shut::Tls));
        }
        let chain = [CertificateDer::from_pem_slice(who.chain.as_bytes())?];
        let presented = Presented::read(Some(&chain))?;
        let certificate = self.registry.certificate(&presented.serial_hex, &presented.spki_sha256_hex).await?;
        let satellite = match &certificate {
            Some(certificate) => self.registry.satellite(&certificate.satellite).await?,
            None => None,
        };
        if let Err(refused) = judge_certificate(certificate.as_ref(), satellite.as_ref(), self.now_ms()) {
            return Ok(Err(Shut::Door(refused.code)));
        }
        let (certificate, satellite) = certificate.zip(satellite).context("judged, so there")?;
        if let Err(refused) = judge_token(&satellite, &who.authenticate()) {
            return Ok(Err(Shut::Door(refused.code)));
        }
        if certificate.state == CertificateState::PendingUse {
            self.registry.certificate_used(&satellite.id, certificate.generation, self.now_ms()).await?;
        }
        Ok(Ok(()))
    }

    async fn recover(&self, who: &Papers) -> Result<Result<(Enrolled, Key), Refusal>> {
        let (key, satellite) = (Key::generate()?, who.satellite.clone());
        let nonce = self.enrolment.challenge(ChallengeRequest { satellite: satellite.clone() }).nonce;
        let (csr, generation) = (key.request()?, who.generation);
        let signature = who.key.sign(&RecoverRequest::signed_text(&satellite, &nonce, generation, &csr))?;
        let request = RecoverRequest { satellite, nonce, generation, csr, signature };
        Ok(self.enrolment.recover(&request).await.map(|enrolled| (enrolled, key)))
    }
}

/// Why the door is shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shut {
    /// TLS sees that the certificate has ended.
    Tls,
    /// The registry says no.
    Door(RefusalCode),
}

/// All that somebody needs to be a satellite.
#[derive(Debug, Clone)]
struct Papers {
    satellite: SatelliteId,
    lease: LeaseId,
    token: Token,
    key: Key,
    chain: String,
    generation: u64,
    not_after_ms: i64,
    renewal: Renewal,
}

impl Papers {
    fn of(enrolled: Enrolled, key: Key) -> Self {
        let Enrolled { satellite, lease, token, chain, generation, not_after_ms, renew_after_ms, .. } = enrolled;
        let renewal = Renewal::new(renew_after_ms, not_after_ms);
        Self { satellite, lease, token, key, chain, generation, not_after_ms, renewal }
    }

    fn authenticate(&self) -> Authenticate {
        Authenticate {
            protocol: 1,
            lease: self.lease.clone(),
            token: self.token.clone(),
            agent_version: "0.1.0".into(),
            hostname: "house".into(),
            instance: "1".into(),
            clock_ms: 0,
            config_version: 0,
            generation: self.generation,
            streams: Vec::new(),
        }
    }
}

/// A satellite as its owner sees it.
struct Satellite {
    papers: Papers,
    /// A certificate that came over the live session and is used at the next connection.
    next: Option<Papers>,
    away_until_ms: i64,
    revoked: bool,
    /// Somebody else renewed with a copy: the owner is out, and knows it.
    displaced: bool,
    /// Recoveries since the last renewal.
    recoveries: u64,
    copy: Option<Papers>,
}

impl Satellite {
    fn new(enrolled: Enrolled, key: Key) -> Self {
        let papers = Papers::of(enrolled, key);
        Self { papers, next: None, away_until_ms: 0, revoked: false, displaced: false, recoveries: 0, copy: None }
    }
}

/// What happened, so that a run can be seen to have tested something.
#[derive(Debug, Default)]
struct Tally {
    connections: u64,
    renewals: u64,
    recoveries: u64,
    revoked: u64,
    refused_revoked: u64,
    copies_let_in: u64,
    copies_refused: u64,
    displaced: u64,
    rows_max: usize,
}

fn months(dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for round in 0..rounds(1) {
        let seed = first_seed() + u64::from(round);
        // What is durable is another test's matter: memory is as good as a disk here, and a hundred times faster.
        let memory = Path::new("/dev/shm");
        let office = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir_in(dir)? };
        let tally = runtime.block_on(quarter(office.path(), seed)).with_context(|| format!("seed {seed}"))?;
        report(seed, &tally);
        // Far below what chance gives: four thousand, a hundred, a hundred or two, six hundred.
        let every =
            [tally.renewals > 2_000, tally.recoveries > 20, tally.refused_revoked > 20, tally.copies_refused > 20];
        ensure!(every.iter().all(|&happened| happened), "seed {seed}: the run tested too little: {tally:?}");
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the figures of a long form")]
fn report(seed: u64, tally: &Tally) {
    eprintln!("seed {seed}: {SATELLITES} satellites, 91 days: {tally:?}");
}

async fn quarter(dir: &Path, seed: u64) -> Result<Tally> {
    let mut dice = Dice::new(seed);
    let office = Office::open(dir).await?;
    let mut satellites = Vec::new();
    for n in 0..SATELLITES {
        satellites.push(office.enrol(&format!("house-{n}"), &mut dice).await?);
    }
    let mut tally = Tally::default();
    let mut grown = 0;
    for turn in 0..TURNS {
        office.clock.advance(TURN_MS + dice.below(600_000));
        for satellite in &mut satellites {
            fate(&office, satellite, &mut dice, &mut tally).await?;
            if let Some(copy) = satellite.copy.clone()
                && dice.one_in(12)
            {
                thieve(&office, satellite, copy, &mut dice, &mut tally).await?;
            }
            if !satellite.revoked && !satellite.displaced && office.now_ms() >= satellite.away_until_ms {
                live(&office, satellite, &mut dice, &mut tally).await?;
            }
        }
        if turn % 8 == 7 {
            for satellite in &satellites {
                must_be_in_order(&office, satellite, &mut tally).await?;
            }
        }
        if turn == TURNS / 3 {
            grown = registry_rows(&office, &satellites).await?;
        }
    }
    let rows = registry_rows(&office, &satellites).await?;
    ensure!(rows <= grown + grown / 4, "the registry grew from {grown} to {rows} certificates");
    Ok(tally)
}

async fn registry_rows(office: &Office, satellites: &[Satellite]) -> Result<usize> {
    let mut rows = 0;
    for satellite in satellites {
        rows += office.registry.certificates(&satellite.papers.satellite).await?.len();
    }
    Ok(rows)
}

/// What happens to a house.
async fn fate(office: &Office, satellite: &mut Satellite, dice: &mut Dice, tally: &mut Tally) -> Result<()> {
    let now_ms = office.now_ms();
    if satellite.revoked {
        if dice.one_in(20) {
            stays_out(office, &satellite.papers, tally).await?;
        }
        return Ok(());
    }
    if now_ms >= satellite.away_until_ms && dice.one_in(300) {
        satellite.away_until_ms = now_ms + DAY_MS * i64::try_from(1 + dice.below(45))?;
    }
    if satellite.copy.is_none() && dice.one_in(1_500) {
        satellite.copy = Some(satellite.papers.clone());
    }
    let noticed = satellite.displaced && dice.one_in(8);
    if noticed || dice.one_in(4_000) {
        office.registry.revoke_satellite(&satellite.papers.satellite, now_ms).await?;
        satellite.revoked = true;
        tally.revoked += 1;
    }
    Ok(())
}

/// Who was revoked is refused by every way in.
async fn stays_out(office: &Office, papers: &Papers, tally: &mut Tally) -> Result<()> {
    match office.connect(papers).await? {
        Err(Shut::Tls | Shut::Door(RefusalCode::Revoked | RefusalCode::Credentials)) => {}
        other => bail!("a revoked satellite at the door: {other:?}"),
    }
    ensure!(office.enrolment.renew(&papers.satellite, &papers.key.request()?).await.is_err(), "it renewed");
    match office.recover(papers).await? {
        Err(Refusal::Revoked | Refusal::Proof) => {}
        other => bail!("a revoked satellite recovers: {:?}", other.map(|_| "let in")),
    }
    tally.refused_revoked += 1;
    Ok(())
}

/// A satellite that is up: connects, renews when it is time, recovers when it was away for too long.
async fn live(office: &Office, satellite: &mut Satellite, dice: &mut Dice, tally: &mut Tally) -> Result<()> {
    let reconnects = dice.one_in(6);
    if reconnects && let Some(next) = satellite.next.take() {
        satellite.papers = next;
    }
    if satellite.papers.renewal.is_expired(office.now_ms()) {
        return recover(office, satellite, tally).await;
    }
    match office.connect(&satellite.papers).await? {
        Ok(()) => tally.connections += 1,
        Err(Shut::Door(RefusalCode::StaleCertificate | RefusalCode::Credentials)) if satellite.copy.is_some() => {
            satellite.displaced = true;
            tally.displaced += 1;
            return Ok(());
        }
        Err(shut) => bail!("an honest satellite is refused: {shut:?}, generation {}", satellite.papers.generation),
    }
    if satellite.next.is_none() && satellite.papers.renewal.ask(office.clock.now()) {
        let key = Key::generate()?;
        let issued = office.enrolment.renew(&satellite.papers.satellite, &key.request()?).await?;
        tally.renewals += 1;
        satellite.recoveries = 0;
        // An answer is lost now and then: the satellite asks again later, with what it has.
        if !dice.one_in(15) {
            let renewal = Renewal::new(issued.renew_after_ms, issued.not_after_ms);
            let (chain, generation, not_after_ms) = (issued.chain, issued.generation, issued.not_after_ms);
            satellite.next = Some(Papers { key, chain, generation, not_after_ms, renewal, ..satellite.papers.clone() });
        }
    }
    Ok(())
}

async fn recover(office: &Office, satellite: &mut Satellite, tally: &mut Tally) -> Result<()> {
    // A next one that was never used goes with the one before: it may have ended too.
    if let Some(next) = satellite.next.take()
        && !next.renewal.is_expired(office.now_ms())
    {
        satellite.papers = next;
        return Ok(());
    }
    match office.recover(&satellite.papers).await? {
        Ok((enrolled, key)) => {
            satellite.papers = Papers::of(enrolled, key);
            satellite.recoveries += 1;
            tally.recoveries += 1;
            ensure!(office.connect(&satellite.papers).await?.is_ok(), "who has recovered is not let in");
        }
        Err(Refusal::Stale | Refusal::Proof) if satellite.copy.is_some() => {
            satellite.displaced = true;
            tally.displaced += 1;
        }
        Err(refusal) => bail!("an honest satellite can't recover: {refusal}"),
    }
    Ok(())
}

/// The holder of a copy tries what the owner could.
async fn thieve(
    office: &Office,
    satellite: &mut Satellite,
    copy: Papers,
    dice: &mut Dice,
    tally: &mut Tally,
) -> Result<()> {
    let before = office.registry.certificate_of(&copy.satellite, copy.generation).await?;
    let in_force = before.is_some_and(|row| row.in_force(office.now_ms()));
    let entered = match office.connect(&copy).await? {
        Err(Shut::Tls) if dice.one_in(2) => match office.recover(&copy).await? {
            Ok((enrolled, key)) => {
                satellite.recoveries += 1;
                satellite.copy = Some(Papers::of(enrolled, key));
                true
            }
            Err(_) => false,
        },
        entered => entered.is_ok(),
    };
    ensure!(!entered || (in_force && !satellite.revoked), "a copy of what is not in force came in");
    if entered {
        tally.copies_let_in += 1
    } else {
        tally.copies_refused += 1
    }
    Ok(())
}

/// What the registry says of one satellite at any time.
async fn must_be_in_order(office: &Office, satellite: &Satellite, tally: &mut Tally) -> Result<()> {
    let now_ms = office.now_ms();
    let id = &satellite.papers.satellite;
    let rows = office.registry.certificates(id).await?;
    let in_force = |state| rows.iter().filter(|row| row.state == state && row.in_force(now_ms)).count();
    let current = in_force(CertificateState::Current);
    let (beside, pending) = (in_force(CertificateState::Overlap), in_force(CertificateState::PendingUse));
    ensure!(
        current <= 1 && beside <= 1 && pending <= 16,
        "{id}: {current} current, {beside} beside, {pending} pending"
    );
    ensure!(!satellite.revoked || current + beside + pending == 0, "{id} is revoked and has a certificate");
    ensure!(rows.len() <= ROWS_MAX, "{id} has {} certificates in the registry", rows.len());
    tally.rows_max = tally.rows_max.max(rows.len());
    let row = office.registry.satellite(id).await?.context("the satellite")?;
    ensure!(
        row.recoveries == satellite.recoveries,
        "{id} recovered {} times, not {}",
        row.recoveries,
        satellite.recoveries
    );
    Ok(())
}

// What TLS refuses.

/// A client with this chain and this key, fitting or not.
fn client(
    office: &Office,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(key.clone_key())?;
    let resolver = Arc::new(Fixed(Arc::new(CertifiedKey::new(chain, key))));
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(office)?)
        .with_client_cert_resolver(resolver);
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    Ok(Arc::new(config))
}

/// A certificate whether or not its key fits.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn roots(office: &Office) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(office.authority.ca_bundle().as_bytes())?)?;
    Ok(roots)
}

fn door(office: &Office) -> Result<Arc<ServerConfig>> {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&office.clock);
    Ok(office.authority.server_config(Door::Satellites, clock)?)
}

/// A handshake in memory: what the server says of the client at the end, and the two ends.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<(ClientConnection, ServerConnection)> {
    let mut client = ClientConnection::new(Arc::clone(client), ServerName::try_from("localhost")?)?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest)?;
            server.process_new_packets().context("the relay refuses")?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire)?;
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest)?;
            client.process_new_packets().context("the client refuses")?;
        }
    }
    ensure!(!client.is_handshaking() && !server.is_handshaking(), "the handshake came to no end");
    Ok((client, server))
}

fn pair_of(path: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let text = std::fs::read(path)?;
    Ok((CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>()?, PrivateKeyDer::from_pem_slice(&text)?))
}

fn leaf(id: &SatelliteId) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, id.as_str());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://satellite/{id}").as_str().try_into()?)];
    Ok(params)
}

fn key_of(pair: &KeyPair) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::try_from(pair.serialize_der()).map_err(|error| anyhow::anyhow!("{error}"))
}

fn strangers(dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (here, there) = (dir.join("here"), dir.join("there"));
    let (office, other) = (runtime.block_on(Office::open(&here))?, runtime.block_on(Office::open(&there))?);
    let papers = runtime.block_on(office.enrol("attic", &mut Dice::new(1)))?.papers;
    let (id, begin_ms) = (&papers.satellite, office.now_ms());
    let own = vec![CertificateDer::from_pem_slice(papers.chain.as_bytes())?];
    let key = papers.key.der()?;
    let server = door(&office)?;
    let good = client(&office, own.clone(), &key)?;
    shake(&good, &server).context("the real one")?;

    let refused = |what: &str, chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>| -> Result<()> {
        match shake(&client(&office, chain, key)?, &server) {
            Ok(_) => bail!("{what} was let in"),
            Err(error) => ensure!(format!("{error:#}").contains("the relay refuses"), "{what}: {error:#}"),
        }
        Ok(())
    };
    // The same satellite, by another relay's authority.
    let csr = papers.key.request()?;
    let foreign = other.authority.issue_client(id, &csr, begin_ms)?;
    refused("another authority's", vec![CertificateDer::from_pem_slice(foreign.chain.as_bytes())?], &key)?;
    // Self-made with the same names, alone and below an authority that has the real one's name and number.
    let pair = KeyPair::generate()?;
    refused("a self-signed one", vec![leaf(id)?.self_signed(&pair)?.der().clone()], &key_of(&pair)?)?;
    let real = CertificateDer::from_pem_slice(office.authority.ca_bundle().as_bytes())?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&real)?;
    let mut twin = CertificateParams::default();
    twin.distinguished_name = rcgen::DistinguishedName::new();
    let name = parsed.subject().iter_common_name().next().context("a name")?.as_str()?;
    twin.distinguished_name.push(DnType::CommonName, name);
    twin.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    twin.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let twin_key = KeyPair::generate()?;
    let twin_certificate = twin.self_signed(&twin_key)?;
    let forged = leaf(id)?.signed_by(&pair, &Issuer::new(twin, twin_key))?;
    refused("a twin authority's", vec![forged.der().clone(), twin_certificate.der().clone()], &key_of(&pair)?)?;
    // A satellite is no authority.
    let issuer = Issuer::from_ca_cert_der(&own[0], KeyPair::try_from(&key)?)?;
    let below = leaf(&SatelliteId::from_bits([7; 10]))?.signed_by(&pair, &issuer)?;
    refused("one that a satellite signed", vec![below.der().clone(), own[0].clone()], &key_of(&pair)?)?;
    // The relay's own, which is for servers.
    let (chain, server_key) = pair_of(&here.join("authority/server.pem"))?;
    refused("the relay's own certificate", chain, &server_key)?;
    let (chain, authority_key) = pair_of(&here.join("authority/authority.pem"))?;
    refused("the authority itself", chain, &authority_key)?;
    // Whoever has seen a certificate has not seen its key.
    refused("one without its key", own.clone(), &key_of(&pair)?)?;
    let mut bent = own[0].to_vec();
    let middle = bent.len() / 2;
    bent[middle] ^= 1;
    refused("one with a bit flipped", vec![bent.into()], &key)?;
    refused("something that is none", vec![vec![0x30, 0x03, 1, 1, 1].into()], &key)?;

    // By the relay's clock, not the client's: a second after its end, and before its beginning.
    office.clock.step_wall(papers.not_after_ms + 1_000);
    refused("one that has ended", own.clone(), &key)?;
    office.clock.step_wall(begin_ms - 2 * 60_000);
    refused("one that is not valid yet", own, &key)?;
    office.clock.step_wall(begin_ms);
    shake(&good, &server).context("the real one, again").map(drop)
}

fn tickets(dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let office = runtime.block_on(Office::open(dir))?;
    let papers = runtime.block_on(office.enrol("attic", &mut Dice::new(1)))?.papers;
    let chain = vec![CertificateDer::from_pem_slice(papers.chain.as_bytes())?];
    let real = client(&office, chain, &papers.key.der()?)?;
    for _ in 0..2 {
        let (client, _) = shake(&real, &door(&office)?)?;
        ensure!(client.tls13_tickets_received() == 0, "the door gives tickets");
        ensure!(client.handshake_kind() != Some(HandshakeKind::Resumed), "the door resumes");
    }
    // A server with the relay's own certificate that asks for none and gives tickets, as one of before might have.
    let (chain, key) = pair_of(&dir.join("authority/server.pem"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut lax = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    lax.alpn_protocols = vec![b"http/1.1".to_vec()];
    lax.send_tls13_tickets = 2;
    let lax = Arc::new(lax);
    let nobody = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&office)?)
        .with_no_client_auth();
    for config in [Arc::new(nobody), real] {
        let (client, _) = shake(&config, &lax)?;
        ensure!(client.tls13_tickets_received() > 0, "no ticket to try");
        let (client, _) = shake(&config, &lax)?;
        ensure!(client.handshake_kind() == Some(HandshakeKind::Resumed), "the ticket is good over there");
        match shake(&config, &door(&office)?) {
            // Who has a certificate shows it again, in full.
            Ok((client, server)) => {
                ensure!(client.handshake_kind() != Some(HandshakeKind::Resumed), "a foreign ticket is taken");
                ensure!(server.peer_certificates().is_some(), "a ticket stands for a certificate");
            }
            Err(error) => ensure!(format!("{error:#}").contains("the relay refuses"), "{error:#}"),
        }
    }
    Ok(())
}
