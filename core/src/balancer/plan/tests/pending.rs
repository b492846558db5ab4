//! What becomes of a proposal: activated once it is installed, replaced by a newer one when nothing can come of it.

use super::*;

/// Three servers, of which 1 no longer answers, and a proposal of the other two that has just been read back.
fn failing_over() -> Story {
    let mut story = Story::new(3);
    story.silence(&[S1]);
    story.wait(701);
    story.adopt();
    assert_eq!(story.shard().pending, Some(config(6, R2, &[R2, R3])));
    story.wait(0);
    story
}

/// A proposal of the three is read back, with replica 2 to lead.
fn moving() -> Story {
    let mut story = Story::new(3);
    story.shard().wanted_primary = Some(S2);
    story.adopt();
    story.shard().wanted_primary = None;
    assert_eq!(story.shard().pending, Some(config(6, R2, &[R1, R2, R3])));
    story.wait(0);
    story
}

/// How long the first proposal may stand at least and at most, in ms: competing controllers are patient for different times.
const PATIENCE: (u64, u64) = (1_499, 2_000);

#[test]
fn installed_proposal_is_activated_as_it_is() {
    let mut story = failing_over();
    story.is_content();
    story.drives.progress(&story.map, R2, Epoch(6), LeadStage::Installed, story.now);
    story.adopt();
    let expected = ShardRecord { current: Some(config(6, R2, &[R2, R3])), pending: None, ..story.shard().clone() };
    assert_eq!(*story.shard(), expected);
    assert_eq!(story.map.counters.epoch, Epoch(6), "no new one");
    story.says(R2, |status| (status.promised, status.lead) = (Epoch(6), Some(LeadStage::Active)));
    story.wait(0);
    story.is_content();
}

#[test]
fn progress_of_another_replica_or_epoch_installs_nothing() {
    let mut story = failing_over();
    for (replica, epoch) in [(R3, 6), (R2, 5), (R2, 7)] {
        story.drives.progress(&story.map, replica, Epoch(epoch), LeadStage::Installed, story.now);
    }
    story.drives.progress(&story.map, R2, Epoch(6), LeadStage::Installing, story.now);
    story.is_content();
}

#[test]
fn superseded_proposal_is_replaced_at_once_and_its_primary_may_lead_again() {
    // A member has promised more than was asked of it.
    let mut story = failing_over();
    story.says(R2, |status| status.last.index = LogIndex(11));
    story.wait(0);
    story.drives.promised(&story.map, R3, Epoch(9), Position::ZERO);
    story.proposes("e7[r2* r3]w2");
    // Its source does not serve.
    let mut story = failing_over();
    story.says(R2, |status| status.last.index = LogIndex(11));
    story.wait(0);
    story.drives.progress(&story.map, R2, Epoch(6), LeadStage::SourceFailed, story.now);
    story.proposes("e7[r2* r3]w2");
    // Promises of older epochs and of this one do not.
    let mut story = failing_over();
    for epoch in [5, 6] {
        story.drives.promised(&story.map, R3, Epoch(epoch), Position::ZERO);
    }
    story.is_content();
}

#[test]
fn proposal_whose_primary_is_lame_is_replaced_at_once() {
    // R15, in its answer or in its beat. Among equals it is the other's turn.
    let mut story = failing_over();
    story.drives.progress(&story.map, R2, Epoch(6), LeadStage::Lame, story.now);
    story.proposes("e7[r2 r3*]w2");
    let mut story = failing_over();
    story.says(R2, |status| (status.promised, status.lead) = (Epoch(6), Some(LeadStage::Lame)));
    story.wait(0);
    story.proposes("e7[r2 r3*]w2");
    // Of another epoch it says nothing.
    story.says(R2, |status| status.promised = Epoch(5));
    story.wait(0);
    story.is_content();
}

#[test]
fn proposal_that_stood_still_is_replaced_with_another_primary() {
    let mut story = failing_over();
    story.wait(PATIENCE.0);
    story.is_content();
    story.wait(PATIENCE.1 - PATIENCE.0);
    story.proposes("e7[r2 r3*]w2");
    // Even if the old one has the better log or is wished for.
    story.says(R2, |status| status.last.index = LogIndex(99));
    story.shard().wanted_primary = Some(S2);
    story.wait(0);
    story.proposes("e7[r2 r3*]w2");
    story.shard().wanted_primary = None;
    // The next one is waited for longer, since that one was not long enough.
    story.adopt();
    story.wait(2_999);
    story.proposes_nothing();
    story.wait(501);
    story.proposes("e8[r2* r3]w2");
}

#[test]
fn patience_with_proposals_is_bounded() {
    let mut story = failing_over();
    for epoch in 7..=30 {
        story.shard().pending = Some(config(epoch, R2, &[R2, R3]));
        story.map.counters.epoch = Epoch(epoch);
        story.wait(0);
    }
    story.wait(9 * 1_500 - 1);
    story.proposes_nothing();
    story.wait(501);
    story.proposes("e31[r2 r3*]w2");
    // It begins anew once one is active.
    story.shard().current = Some(config(30, R2, &[R2, R3]));
    story.shard().pending = None;
    story.wait(0);
    story.shard().pending = Some(config(31, R2, &[R2, R3]));
    story.map.counters.epoch = Epoch(31);
    story.wait(PATIENCE.1);
    story.proposes("e32[r2 r3*]w2");
}

#[test]
fn proposal_that_stood_still_keeps_its_primary_where_there_is_no_other() {
    let mut story = Story::new(2);
    story.silence(&[S2]);
    story.wait(701);
    story.adopt();
    assert_eq!(story.shard().pending, Some(config(6, R1, &[R1])));
    story.wait(PATIENCE.1);
    story.proposes("e7[r1*]w1");
}

#[test]
fn proposal_whose_primary_is_gone_is_replaced_before_its_time() {
    let mut story = moving();
    story.silence(&[S2]);
    story.wait(700);
    story.proposes_nothing();
    story.wait(1);
    // The one that leads still leads on.
    story.proposes("e7[r1* r2 r3]w2");
    // Lost, and so no longer ready.
    let mut story = moving();
    story.says(R2, |status| status.lost = Some(LostReason::LogMissing));
    story.wait(500);
    story.proposes("e7[r1* r3]w2");
    // One that only needs its time is not gone.
    let mut story = moving();
    story.wait(PATIENCE.0);
    story.is_content();
}

#[test]
fn proposal_whose_primary_comes_further_is_left_alone() {
    let mut story = moving();
    for progress in 1..20 {
        story.wait(PATIENCE.0 - 1);
        story.drives.moves(&story.map, R2, Epoch(6), progress, story.now);
        story.is_content();
    }
    // The same again is no progress, nor is what others or earlier epochs do.
    story.wait(PATIENCE.0 - 1);
    for (replica, epoch, progress) in [(R2, 6, 19), (R1, 6, 20), (R2, 5, 20)] {
        story.drives.moves(&story.map, replica, Epoch(epoch), progress, story.now);
    }
    story.is_content();
    story.wait(PATIENCE.1 - PATIENCE.0 + 1);
    assert!(story.next().shards[&SH1].pending.as_ref().is_some_and(|pending| pending.epoch == Epoch(7)));
}

#[test]
fn primary_that_does_not_reach_its_members_is_passed_over_then_goes_on_without_them() {
    let mut story = Story::new(4);
    story.shard().pending = Some(config(6, R1, &[R1, R2, R3, R4]));
    story.map.counters.epoch = Epoch(6);
    let cut = |story: &mut Story, replica: ReplicaId, epoch: u64, unreached: &[ReplicaId]| {
        story.says(replica, |status| {
            (status.promised, status.lead) = (Epoch(epoch), Some(LeadStage::Installing));
            status.unreached = unreached.to_vec();
        });
    };
    cut(&mut story, R1, 6, &[R2, R3]);
    story.wait(PATIENCE.1);
    // Another may reach them.
    story.proposes("e7[r1 r2* r3 r4]w3");
    story.adopt();
    cut(&mut story, R2, 7, &[R1]);
    story.wait(2 * PATIENCE.1);
    // It does not either.
    story.proposes("e8[r2* r3 r4]w2");
}

#[test]
fn primary_of_two_goes_on_without_the_one_that_it_does_not_reach() {
    let mut story = Story::new(2);
    story.shard().pending = Some(config(6, R1, &[R1, R2]));
    story.map.counters.epoch = Epoch(6);
    let mut other = |unreached: &[ReplicaId]| {
        story.says(R1, |status| {
            (status.promised, status.lead) = (Epoch(6), Some(LeadStage::Installing));
            status.unreached = unreached.to_vec();
        });
        story.wait(PATIENCE.1);
        story.next().shards[&SH1].pending.as_ref().map(Configuration::to_string).unwrap()
    };
    assert_eq!(other(&[R2]), "e7[r1*]w1");
    assert_eq!(other(&[]), "e7[r1 r2*]w2");
}

#[test]
fn stuck_proposal_waits_where_the_current_configuration_cannot_be_sealed() {
    let superseded = |story: &mut Story| story.drives.promised(&story.map, R3, Epoch(9), Position::ZERO);
    let stands_still = |_: &mut Story| {};
    let cases: [fn(&mut Story); 2] = [superseded, stands_still];
    for stick in cases {
        let mut story = failing_over();
        stick(&mut story);
        story.silence(&[S2]);
        story.wait(60_000);
        story.proposes_nothing();
        story.silent.clear();
        story.wait(0);
        assert!(story.next().shards[&SH1].pending.as_ref().is_some_and(|pending| pending.epoch == Epoch(7)));
    }
}

#[test]
fn first_proposal_that_stood_still_is_replaced_too() {
    let mut story = Story::unborn(3);
    story.adopt();
    assert_eq!(story.shard().pending, Some(config(6, R1, &[R1, R2, R3])));
    story.wait(PATIENCE.0);
    story.is_content();
    story.wait(PATIENCE.1 - PATIENCE.0);
    story.proposes("e7[r1 r2* r3]w2");
    // Its primary may be gone: the others begin without it, if they have waited long enough for all.
    story.silence(&[S1]);
    story.wait(10_000);
    story.proposes("e7[r2* r3]w2");
}

#[test]
fn shards_are_planned_for_in_one_map_with_an_epoch_each() {
    let mut story = Story::new(3);
    story.second_shard(S1);
    story.silence(&[S1]);
    story.wait(800);
    let next = story.next();
    let pending = |shard| next.shards[&shard].pending.as_ref().unwrap().to_string();
    // The first one to be given away counts as a lead for the second.
    assert_eq!([pending(SH1), pending(SH2)], ["e6[r2* r3]w2", "e7[r12 r13*]w2"]);
    assert_eq!(next.counters.epoch, Epoch(7));
}
