//! What a module of a MIB is, and how its values become samples.
//!
//! Modules are data (see [`super::modules`]); names and labels are as snmp_exporter's generator makes them of the MIB: a
//! number is a gauge or counter with the labels of its row, a text is a 1 with the text as a label of its own name, and
//! a column that names the row is a label of all others. A label that would be empty is left out.

use super::conversation::Conversation;
use super::oid::{Data, Oid};
use super::walk::{self, Ended, Table};
use crate::collector::{Family, Readings};

/// What a configuration names.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: &'static str,
    /// Where it stands as a whole.
    pub(super) at: &'static [u32],
    pub(super) groups: &'static [Group],
}

/// Scalars of one place, or one table.
#[derive(Debug)]
pub(super) struct Group {
    /// The place that every object is below.
    pub(super) at: &'static [u32],
    /// What the arcs of the index are called; none for scalars.
    pub(super) index: &'static [&'static str],
    /// Columns that are labels.
    pub(super) lookups: &'static [Lookup],
    pub(super) objects: &'static [Object],
}

/// A column that is a label of all others, wherever it stands.
#[derive(Debug)]
pub(super) struct Lookup(pub(super) &'static str, pub(super) &'static [u32]);

/// One object: where below its group, its name, form and unit.
#[derive(Debug)]
pub(super) struct Object(pub(super) &'static [u32], pub(super) &'static str, pub(super) Form, pub(super) &'static str);

/// Names of an enumeration's numbers, or of bits, which are counted from the highest of the first octet.
pub(super) type Names = &'static [(u8, &'static str)];

/// How an object's value becomes samples.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    Gauge,
    Counter,
    /// A text or a name.
    Text,
    /// Octets as a network card's address.
    Address,
    /// One of these, as a label.
    Info(Names),
    /// Each of these, 1 for the one that it is.
    StateSet(Names),
    /// Each of these, 1 for those that are set.
    Bits(Names),
}

type Labels = Vec<(&'static str, String)>;

impl Module {
    /// The module of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        super::modules::ALL.iter().find(|module| module.name == name)
    }

    /// Reads it whole, then adds what there is; how many samples that were.
    pub(super) async fn read(
        &self,
        conversation: &mut Conversation<'_>,
        metric: usize,
        readings: &mut Readings,
    ) -> Result<usize, Ended> {
        let (scalars, tables): (Vec<&Group>, Vec<&Group>) = self.groups.iter().partition(|group| group.is_scalar());
        let names: Vec<Oid> =
            scalars.iter().flat_map(|group| group.objects.iter().map(|it| group.instance(it))).collect();
        let values = walk::values(conversation, &names).await?;
        let mut read = Vec::with_capacity(tables.len());
        for group in tables {
            read.push((group, walk::table(conversation, &group.columns()).await?));
        }
        let before = readings.len();
        let objects = scalars.iter().flat_map(|group| group.objects);
        objects.zip(&values).for_each(|(object, data)| object.add(metric, &Labels::new(), data, readings));
        read.iter().for_each(|(group, table)| group.add(metric, table, readings));
        Ok(readings.len() - before)
    }
}

impl Group {
    fn is_scalar(&self) -> bool {
        self.index.is_empty()
    }

    fn instance(&self, object: &Object) -> Oid {
        Oid::below(self.at, &[object.0, &[0]].concat())
    }

    fn columns(&self) -> Vec<Oid> {
        let lookups = self.lookups.iter().map(|Lookup(_, at)| Oid::below(at, &[]));
        lookups.chain(self.objects.iter().map(|object| Oid::below(self.at, object.0))).collect()
    }

    fn add(&self, metric: usize, table: &Table, readings: &mut Readings) {
        for (index, cells) in table.iter().filter(|(index, _)| index.len() == self.index.len()) {
            let arcs = self.index.iter().zip(index).map(|(label, arc)| (*label, arc.to_string()));
            let lookups = self.lookups.iter().zip(cells).map(|(Lookup(label, _), data)| (*label, data.text()));
            let labels: Labels = arcs.chain(lookups.filter(|(_, text)| !text.is_empty())).collect();
            let objects = self.objects.iter().zip(&cells[self.lookups.len()..]);
            objects.for_each(|(object, data)| object.add(metric, &labels, data, readings));
        }
    }
}

impl Object {
    fn add(&self, metric: usize, labels: &Labels, data: &Data, readings: &mut Readings) {
        let Self(_, name, form, unit) = self;
        let mut add = |family: Family<'_>, more: Option<(&str, &str)>, value: f64| {
            let labels = labels.iter().map(|(name, text)| (*name, text.as_str()));
            let labels: Vec<(&str, &str)> = labels.filter(|(own, _)| *own != *name).chain(more).collect();
            readings.sample(metric, family, &labels, value);
        };
        let is = |is: bool| f64::from(u8::from(is));
        match (form, data) {
            (Form::Gauge, Data::Number(number)) => add(Family::gauge(name, unit), None, *number),
            (Form::Counter, Data::Number(number)) => add(Family::counter(name, unit), None, *number),
            (Form::Text, Data::Octets(_) | Data::Name(_)) => {
                let text = data.text();
                if !text.is_empty() {
                    add(Family::gauge(name, ""), Some((name, &text)), 1.0);
                }
            }
            (Form::Address, Data::Octets(octets)) if !octets.is_empty() => {
                let text = octets.iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().join(":");
                add(Family::gauge(name, ""), Some((name, &text)), 1.0);
            }
            (Form::Info(names), Data::Number(number)) => {
                let named = names.iter().find(|(own, _)| f64::from(*own) == *number);
                let text = named.map_or_else(|| number.to_string(), |(_, text)| (*text).to_owned());
                add(Family::gauge(&format!("{name}_info"), ""), Some((name, &text)), 1.0);
            }
            (Form::StateSet(names), Data::Number(number)) => {
                for (own, text) in *names {
                    add(Family::gauge(name, ""), Some((name, text)), is(f64::from(*own) == *number));
                }
            }
            (Form::Bits(names), Data::Octets(octets)) => {
                for (bit, text) in *names {
                    let octet = octets.get(usize::from(bit / 8)).copied().unwrap_or(0);
                    add(Family::gauge(name, ""), Some((name, text)), is(octet & 0x80 >> (bit % 8) != 0));
                }
            }
            // What the MIB says is not what the device gave.
            _ => {}
        }
    }
}
