//! The choice as the Integration Server is told it, when it asks.

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::choice::{Choice, ChoiceRole, Chosen, MAX_CHOICES};

use super::explained::{Role, Shown, Svm};

impl Shown {
    /// Answers the question of this number.
    pub fn told(&self, number: u64) -> Choice {
        let more = self.svms.len().saturating_sub(MAX_CHOICES);
        Choice {
            number,
            source: Text::cut(&self.source),
            reach: self.path,
            place: Text::cut(&self.place),
            tags: List::cut(self.tags.iter().map(|tag| Text::cut(tag))),
            svms: List::cut(self.svms.iter().map(told)),
            more: u32::try_from(more).unwrap_or(u32::MAX),
        }
    }
}

fn told(svm: &Svm) -> Chosen {
    Chosen {
        id: svm.id.as_ref().and_then(|id| id.parse().ok()),
        name: Text::cut(&svm.name),
        addresses: List::cut(svm.addresses.iter().map(|address| Text::cut(address))),
        role: match svm.role {
            Role::InUse => ChoiceRole::InUse,
            Role::Spare => ChoiceRole::Spare,
            Role::Candidate => ChoiceRole::Candidate,
            Role::Excluded => ChoiceRole::Excluded,
        },
        why: Text::cut(&svm.why),
        score: svm.score,
        connected_s: svm.connected_s,
        round_trip_us: svm.round_trip_us,
        failure: svm
            .failure
            .as_ref()
            .map(|failure| (Text::cut(&failure.reason), failure.ago_s)),
    }
}

#[cfg(test)]
mod tests {
    use palisade_protocol::codec;
    use palisade_protocol::control::ToServer;
    use palisade_protocol::ids::SvmId;

    use super::*;
    use crate::selection::explained::LastFailure;

    /// What does not fit is cut and counted, and the whole is a message that can be sent.
    #[test]
    fn the_largest_choice_fits_its_message() {
        let long = || "x".repeat(2000);
        let svm = Svm {
            name: long(),
            id: Some(SvmId::random().to_string()),
            addresses: vec![long(); 99],
            role: Role::Candidate,
            why: long(),
            nearness: Some(long()),
            licence_valid: Some(true),
            score: Some(u32::MAX),
            connected_s: Some(u64::MAX),
            round_trip_us: Some(u64::MAX),
            failure: Some(LastFailure {
                reason: long(),
                ago_s: u64::MAX,
            }),
        };
        let shown = Shown {
            source: long(),
            place: long(),
            tags: vec![long(); 99],
            svms: vec![svm; MAX_CHOICES + 5],
            ..Shown::default()
        };
        let choice = shown.told(3);
        assert_eq!((choice.number, choice.more), (3, 5));
        assert_eq!(choice.svms.len(), MAX_CHOICES);
        assert!(choice.svms[0].id.is_some());
        let message = ToServer::Choice(choice);
        let bytes = codec::encode(&message).unwrap();
        assert_eq!(codec::decode::<ToServer>(&bytes).unwrap(), message);
    }
}
