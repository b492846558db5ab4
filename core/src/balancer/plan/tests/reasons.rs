//! What is told of why a configuration is proposed, and why who leads it.

use super::*;
use crate::reason::{Cause, Choice};

type Change = fn(&mut Story);

/// A fourth replica on server 4 has caught up.
fn taught(story: &mut Story) {
    story.server(S4);
    story.replica(R4, SH1, S4, ReplicaStage::Ready);
    story.shard().placement.insert(S4);
    story.says(R1, |status| status.learners = vec![(R4, LogIndex(10), true)]);
}

#[test]
fn every_proposal_says_why_it_is_made_and_why_who_leads_it() {
    let cases: [(Change, u64, &str, Cause, Choice); 16] = [
        (|story| story.silence(&[S1]), 800, "e6[r2* r3]w2", Cause::PrimarySilent, Choice::LeadsLeast),
        (
            |story| {
                story.says(R2, |status| status.last.index = LogIndex(11));
                story.silence(&[S1]);
            },
            800,
            "e6[r2* r3]w2",
            Cause::PrimarySilent,
            Choice::NewestLog,
        ),
        (
            |story| story.says(R1, |status| status.lost = Some(LostReason::RowsMissing)),
            0,
            "e6[r2* r3]w2",
            Cause::PrimaryLost,
            Choice::LeadsLeast,
        ),
        (|story| story.says(R1, |status| status.lead = None), 0, "e6[r1 r2* r3]w2", Cause::PrimaryLame, Choice::LeadsLeast),
        (
            |story| story.says(R1, |status| (status.promised, status.lead) = (Epoch(6), None)),
            0,
            "e6[r1 r2* r3]w2",
            Cause::PrimarySealed,
            Choice::LeadsLeast,
        ),
        (|story| story.says(R1, |status| status.unreached = vec![R2, R3]), 0, "e6[r1 r2* r3]w2", Cause::PrimaryCutOff, Choice::LeadsLeast),
        (|story| story.says(R1, |status| status.store_away = true), 0, "e6[r1 r2* r3]w2", Cause::StoreAway, Choice::LeadsLeast),
        (
            |story| [R1, R2].into_iter().for_each(|replica| story.says(replica, |status| status.store_away = true)),
            0,
            "e6[r1 r2 r3*]w2",
            Cause::StoreAway,
            Choice::OnlyOne,
        ),
        (|story| story.shard().wanted_primary = Some(S3), 0, "e6[r1 r2 r3*]w2", Cause::PrimaryWished, Choice::Wished),
        (
            |story| {
                taught(story);
                story.shard().placement.remove(&S1);
            },
            0,
            "e6[r2* r3 r4]w2",
            Cause::PrimaryUnwanted,
            Choice::LeadsLeast,
        ),
        (
            |story| {
                taught(story);
                story.shard().placement.remove(&S3);
            },
            0,
            "e6[r1* r2 r4]w2",
            Cause::MemberUnwanted,
            Choice::Leads,
        ),
        (taught, 0, "e6[r1* r2 r3 r4]w3", Cause::LearnerReady, Choice::Leads),
        (|story| story.says(R3, |status| status.lost = Some(LostReason::LogMissing)), 0, "e6[r1* r2]w2", Cause::MemberLost, Choice::Leads),
        (|story| story.silence(&[S3]), 15_001, "e6[r1* r2]w2", Cause::MemberSilent, Choice::Leads),
        (|story| story.shard().current = None, 0, "e6[r1* r2 r3]w2", Cause::First, Choice::LeadsLeast),
        (
            |story| {
                story.shard().current = None;
                story.silence(&[S2]);
            },
            10_001,
            "e6[r1* r3]w2",
            Cause::FirstOfSome,
            Choice::LeadsLeast,
        ),
    ];
    for (change, wait_ms, expected, cause, choice) in cases {
        let mut story = Story::new(3);
        change(&mut story);
        story.wait(wait_ms);
        story.proposes(expected);
        assert_eq!(story.reason(), Some(Reason { cause, choice }), "{expected}");
    }
    assert_eq!(Story::new(3).reason(), None);
}

#[test]
fn proposal_in_place_of_another_says_what_became_of_that() {
    let moving = || {
        let mut story = Story::new(3);
        story.shard().wanted_primary = Some(S2);
        story.adopt();
        story.shard().wanted_primary = None;
        story
    };
    let mut story = moving();
    story.drives.promised(&story.map, R3, Epoch(9), Position::ZERO);
    assert_eq!(story.reason().map(|reason| reason.cause), Some(Cause::EpochOver));
    let mut story = moving();
    story.wait(2_000);
    assert_eq!(story.reason(), Some(Reason { cause: Cause::StoodStill, choice: Choice::Leads }));
    // There is no other, and the one does not reach its only backup.
    let mut story = Story::new(2);
    story.shard().pending = Some(config(6, R1, &[R1, R2]));
    story.map.counters.epoch = Epoch(6);
    story.says(R1, |status| (status.promised, status.lead, status.unreached) = (Epoch(6), Some(LeadStage::Installing), vec![R2]));
    story.wait(2_000);
    story.proposes("e7[r1*]w1");
    assert_eq!(story.reason(), Some(Reason { cause: Cause::Unreached, choice: Choice::OnlyOne }));
}
