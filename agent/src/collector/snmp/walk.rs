//! Single values by GET and columns of tables by GETBULK, in as few questions as fit their datagrams.
//!
//! A table is read a few columns at a time, side by side. Every name that a device gives has to come after the last one
//! of its column: a device that goes round in circles would be walked for ever. Rows and bytes are bounded, and so is,
//! one level below, how much is asked.

use std::collections::BTreeMap;

use satellite_shared::gap::Reason;

use super::conversation::{Answer, Conversation, Question};
use super::oid::{Data, Oid};
use crate::collector::Failure;

/// Values of one GET, unless the device takes fewer.
pub(super) const VALUES_MAX: usize = 16;
/// Columns that are walked side by side.
const COLUMNS_MAX: usize = 6;
/// Values of one GETBULK: what fits a datagram that no router has to cut.
const CELLS_MAX: usize = 48;
/// Rows of one answer.
const ROWS_MAX: usize = 25;
/// Rows of one table.
const TABLE_ROWS_MAX: usize = 2_000;
/// What one table may take in memory.
const TABLE_BYTES_MAX: usize = 2 << 20;

/// `tooBig` and its like (RFC 3416, 3).
const TOO_BIG: u32 = 1;
const NO_SUCH_NAME: u32 = 2;
const GENERAL: u32 = 5;

/// Why something can't be read.
pub(super) enum Ended {
    /// The conversation is over, and with it everything else.
    All(Failure),
    /// This alone.
    This(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::All(failure)
    }
}

fn bad(detail: impl Into<String>) -> Ended {
    Ended::This(Failure::new(Reason::BadAnswer, detail))
}

/// Rows by their index; a cell that the device does not have is [`Data::Absent`].
pub(super) type Table = BTreeMap<Vec<u32>, Vec<Data>>;

/// What stands at each of these names.
pub(super) async fn values(conversation: &mut Conversation<'_>, names: &[Oid]) -> Result<Vec<Data>, Ended> {
    let mut found = vec![Data::Absent; names.len()];
    // By their places, so that one which the device stumbles over can be left out.
    let mut left: Vec<usize> = (0..names.len()).collect();
    let mut most = VALUES_MAX;
    while !left.is_empty() {
        let some = &left[..left.len().min(most)];
        let some: Vec<Oid> = some.iter().map(|&place| names[place].clone()).collect();
        let Answer { status, at, asked, bindings } = conversation.ask(&Question::Get(&some)).await?;
        let asked = &some[..asked.min(some.len())];
        let stumbled = usize::try_from(at).ok().and_then(|at| at.checked_sub(1)).filter(|at| *at < asked.len());
        match (status, stumbled) {
            (0, _) => {
                if bindings.len() != asked.len() || bindings.iter().zip(asked).any(|((name, _), own)| name != own) {
                    return Err(bad("the answer is to another question"));
                }
                for (place, (_, data)) in left.drain(..asked.len()).zip(bindings) {
                    found[place] = data;
                }
            }
            (TOO_BIG, _) if asked.len() > 1 => most = asked.len() / 2,
            (TOO_BIG | NO_SUCH_NAME | GENERAL, stumbled) => {
                left.remove(stumbled.unwrap_or(0));
            }
            (status, _) => return Err(refused(status)),
        }
    }
    Ok(found)
}

/// All rows of these columns.
pub(super) async fn table(conversation: &mut Conversation<'_>, columns: &[Oid]) -> Result<Table, Ended> {
    let mut walked = Walked { table: Table::new(), width: columns.len(), bytes: 0 };
    for first in (0..columns.len()).step_by(COLUMNS_MAX) {
        let some = columns.iter().enumerate().skip(first).take(COLUMNS_MAX);
        let some = some.map(|(place, at)| Column { place, at: at.clone(), last: at.clone(), is_done: false });
        walk(conversation, some.collect(), &mut walked).await?;
    }
    Ok(walked.table)
}

struct Column {
    place: usize,
    at: Oid,
    /// The last name that the device gave.
    last: Oid,
    is_done: bool,
}

struct Walked {
    table: Table,
    width: usize,
    bytes: usize,
}

async fn walk(conversation: &mut Conversation<'_>, mut columns: Vec<Column>, walked: &mut Walked) -> Result<(), Ended> {
    let mut most = CELLS_MAX;
    while !columns.is_empty() {
        let from: Vec<Oid> = columns.iter().map(|column| column.last.clone()).collect();
        let rows = (most / columns.len()).clamp(1, ROWS_MAX);
        let question = Question::Bulk(&from, u32::try_from(rows).unwrap_or(1));
        let answer = conversation.ask(&question).await?;
        match answer.status {
            0 => walked.take(&mut columns, answer.bindings)?,
            TOO_BIG if most > 1 => most /= 2,
            TOO_BIG if columns.len() > 1 => {
                for column in columns {
                    Box::pin(walk(conversation, vec![column], walked)).await?;
                }
                return Ok(());
            }
            // The way in which SNMPv1 said that nothing follows.
            NO_SUCH_NAME => return Ok(()),
            status => return Err(refused(status)),
        }
        columns.retain(|column| !column.is_done);
    }
    Ok(())
}

impl Walked {
    /// Puts what was answered where it belongs: one value a column, row by row.
    fn take(&mut self, columns: &mut [Column], bindings: Vec<(Oid, Data)>) -> Result<(), Ended> {
        if bindings.is_empty() {
            return Err(bad("an answer without anything in it"));
        }
        let side_by_side = columns.len();
        for (position, (name, data)) in bindings.into_iter().enumerate() {
            let column = &mut columns[position % side_by_side];
            if column.is_done {
                continue;
            }
            let index = name.index_in(&column.at).filter(|_| !matches!(data, Data::End | Data::Absent));
            let Some(index) = index else {
                column.is_done = true;
                continue;
            };
            if name <= column.last {
                return Err(bad(format!("{name} comes again after {}: the device goes round in circles", column.last)));
            }
            let row = self.table.entry(index.to_vec()).or_insert_with(|| {
                self.bytes += (self.width * size_of::<Data>()) + 4 * index.len();
                vec![Data::Absent; self.width]
            });
            self.bytes += data.bytes();
            row[column.place] = data;
            column.last = name;
            if self.table.len() > TABLE_ROWS_MAX || self.bytes > TABLE_BYTES_MAX {
                let most = format!("more than {TABLE_ROWS_MAX} rows or {TABLE_BYTES_MAX} bytes");
                return Err(bad(format!("{}: {most} of a table", column.at)));
            }
        }
        Ok(())
    }
}

fn refused(status: u32) -> Ended {
    let what = match status {
        TOO_BIG => "its answer does not fit a datagram (tooBig)",
        GENERAL => "it failed (genErr)",
        6 => "it gives no access (noAccess)",
        16 => "this user or community may not see it (authorizationError)",
        _ => return Ended::This(Failure::new(Reason::Refused, format!("the device refuses with error {status}"))),
    };
    Ended::This(Failure::new(Reason::Refused, format!("the device refuses: {what}")))
}

/// That a device has nothing where a value or a table was expected.
pub(super) fn nothing(place: &str) -> Failure {
    let detail = format!("the device has nothing at {place}, or its view hides that from this community or user");
    Failure::new(Reason::Unsupported, detail)
}
