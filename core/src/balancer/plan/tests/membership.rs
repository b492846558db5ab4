//! Who becomes a member, who stays one, and what becomes of the replicas that nobody needs.

use super::*;

/// Three members and a fourth replica on server 4 that is placed but not yet a member.
fn learning() -> Story {
    let mut story = Story::new(3);
    story.server(S4);
    story.replica(R4, SH1, S4, ReplicaStage::Ready);
    story.shard().placement.insert(S4);
    story.wait(0);
    story
}

fn taught(story: &mut Story, caught_up: bool) {
    story.says(R1, |status| status.learners = vec![(R4, LogIndex(10), caught_up)]);
    story.wait(0);
}

#[test]
fn member_that_is_down_keeps_its_place_for_15_s_while_the_quorum_holds() {
    let mut story = Story::new(3);
    story.silence(&[S3]);
    story.wait(15_000);
    story.is_content();
    story.wait(1);
    story.proposes("e6[r1* r2]w2");
    story.silent.clear();
    story.wait(0);
    story.is_content();
}

#[test]
fn member_that_is_down_goes_at_once_where_the_quorum_does_not_hold() {
    let mut story = Story::new(2);
    story.silence(&[S2]);
    story.wait(700);
    story.is_content();
    story.wait(1);
    story.proposes("e6[r1*]w1");
}

#[test]
fn members_that_do_not_answer_are_left_out_of_what_could_not_be_installed_with_them() {
    // Server 3 is silent for less than 700 ms: it would stay, but all three are needed to install.
    let mut story = Story::new(3);
    story.map.settings.write_quorum = Some(3);
    story.silence(&[S3]);
    story.says(R1, |status| status.lead = Some(LeadStage::Lame));
    story.wait(600);
    story.proposes("e6[r1 r2*]w2");
}

#[test]
fn lost_replica_is_retired_and_a_new_one_minted_on_its_server() {
    let mut story = Story::new(3);
    story.says(R3, |status| status.lost = Some(LostReason::LogMissing));
    story.wait(0);
    story.proposes("e6[r1* r2]w2");
    story.adopt();
    assert_eq!(story.map.replicas[&R3].stage, ReplicaStage::Retired);
    assert_eq!(story.map.replicas[&R4], ReplicaRecord { shard: SH1, server: S3, stage: ReplicaStage::Minted });
    story.adopt();
    assert!(!story.map.replicas.contains_key(&ReplicaId(5)), "one is enough");
    // R17: it is ready once its server has it, R18: the lost one is forgotten once its server has it no more.
    story.drives.created.insert(R4);
    story.adopt();
    assert_eq!(story.map.replicas[&R4].stage, ReplicaStage::Ready);
    story.drives.retired.insert(R3);
    story.adopt();
    assert!(story.map.replicas.contains_key(&R3), "the current configuration still has it");
    story.drives.progress(&story.map, R1, Epoch(6), LeadStage::Installed, story.now);
    story.adopt();
    assert!(!story.map.replicas.contains_key(&R3));
}

#[test]
fn lost_primary_is_retired_and_another_leads() {
    let mut story = Story::new(3);
    story.says(R1, |status| status.lost = Some(LostReason::RowsDamaged));
    story.wait(0);
    story.proposes("e6[r2* r3]w2");
}

#[test]
fn minted_replica_that_is_lost_is_never_ready() {
    let mut story = learning();
    story.replica(R4, SH1, S4, ReplicaStage::Minted);
    story.says(R4, |status| status.lost = Some(LostReason::Foreign));
    story.drives.created.insert(R4);
    story.wait(0);
    story.adopt();
    assert_eq!(story.map.replicas[&R4].stage, ReplicaStage::Retired);
    assert_eq!(story.map.replicas[&ReplicaId(5)].stage, ReplicaStage::Minted);
}

#[test]
fn learner_becomes_a_member_once_its_active_primary_says_that_it_has_caught_up() {
    let mut story = learning();
    story.is_content();
    taught(&mut story, false);
    story.is_content();
    taught(&mut story, true);
    story.proposes("e6[r1* r2 r3 r4]w3");
    // Not where its server is silent, nor as the word of a primary that does not serve.
    let mut silent = learning();
    silent.silence(&[S4]);
    silent.wait(500);
    taught(&mut silent, true);
    silent.proposes_nothing();
    let mut installed = learning();
    installed.says(R1, |status| status.lead = Some(LeadStage::Installed));
    taught(&mut installed, true);
    installed.proposes_nothing();
    // Nor if it is not wanted there: it is retired instead.
    let mut unwanted = learning();
    unwanted.shard().placement.remove(&S4);
    taught(&mut unwanted, true);
    unwanted.proposes_nothing();
    unwanted.adopt();
    assert_eq!(unwanted.map.replicas[&R4].stage, ReplicaStage::Retired);
    // Nor while another that is wanted is still being taught.
    let mut unwanted = learning();
    unwanted.server(ServerId(5));
    unwanted.shard().placement = BTreeSet::from([S1, S2, S3, ServerId(5)]);
    taught(&mut unwanted, true);
    unwanted.proposes_nothing();
}

#[test]
fn leaving_server_is_out_only_once_the_wanted_ones_are_members() {
    let mut story = learning();
    story.shard().placement.remove(&S3);
    story.map.servers.get_mut(&S3).unwrap().goal = ServerGoal::Leave;
    taught(&mut story, false);
    story.is_content();
    taught(&mut story, true);
    story.proposes("e6[r1* r2 r4]w2");
    // Nor is a copy given up for a server that does not answer: it is respawned, and until then there would be fewer than before.
    story.silence(&[S4]);
    story.wait(500);
    story.is_content();
    // One that is already gone is no reason to keep another: there are as many as before.
    let mut story = learning();
    story.shard().current = Some(config(5, R1, &[R1, R3]));
    story.shard().placement.remove(&S3);
    story.silence(&[S2]);
    story.wait(15_001);
    taught(&mut story, true);
    story.proposes("e6[r1* r4]w2");
}

#[test]
fn leaving_primary_hands_over() {
    let mut story = learning();
    story.shard().placement.remove(&S1);
    taught(&mut story, true);
    story.proposes("e6[r2* r3 r4]w2");
}

#[test]
fn last_member_never_leaves() {
    let mut story = Story::new(1);
    story.server(S4);
    story.replica(R4, SH1, S4, ReplicaStage::Ready);
    story.shard().placement = BTreeSet::from([S4]);
    story.wait(0);
    story.is_content();
    taught(&mut story, true);
    story.proposes("e6[r4*]w1");
    // Not even if nobody who is wanted answers.
    story.silence(&[S4]);
    story.wait(500);
    story.proposes_nothing();
    // Or nobody is wanted at all.
    story.shard().placement.clear();
    story.proposes_nothing();
    // While nobody who is wanted answers, those who are not go on.
    let mut story = Story::new(3);
    story.shard().placement = BTreeSet::from([S2]);
    story.silence(&[S2]);
    story.wait(15_001);
    story.proposes("e6[r1* r3]w2");
}

#[test]
fn replicas_are_minted_where_they_are_placed_and_nowhere_else() {
    let mut story = Story::new(3);
    story.server(S4);
    story.shard().placement.extend([S4, ServerId(9)]);
    story.wait(0);
    story.adopt();
    assert_eq!(story.map.replicas.len(), 4, "none on a server that the map does not have");
    assert_eq!(story.map.replicas[&R4], ReplicaRecord { shard: SH1, server: S4, stage: ReplicaStage::Minted });
    assert_eq!(story.map.counters.replica, R4, "R10");
    story.proposes_nothing();
}

#[test]
fn leaving_server_is_forgotten_once_it_is_empty_and_stopped() {
    let mut story = learning();
    story.shard().placement.remove(&S4);
    story.map.servers.get_mut(&S4).unwrap().goal = ServerGoal::Leave;
    story.wait(0);
    story.adopt();
    assert_eq!(story.map.replicas[&R4].stage, ReplicaStage::Retired);
    story.is_content();
    story.drives.retired.insert(R4);
    story.adopt();
    assert!(!story.map.replicas.contains_key(&R4) && story.map.servers.contains_key(&S4), "its process still runs");
    story.is_content();
    story.drives.stopped.insert(S4);
    story.adopt();
    assert!(!story.map.servers.contains_key(&S4));
    story.is_content();
}

#[test]
fn retired_replicas_of_a_stopped_server_go_with_it() {
    let mut story = learning();
    story.shard().placement.remove(&S4);
    story.map.servers.get_mut(&S4).unwrap().goal = ServerGoal::Leave;
    story.silence(&[S4]);
    story.adopt();
    story.drives.stopped.insert(S4);
    story.adopt();
    assert!(!story.map.replicas.contains_key(&R4) && !story.map.servers.contains_key(&S4));
    // One that shall run is never forgotten.
    let mut story = Story::new(3);
    story.drives.stopped.insert(S3);
    story.is_content();
}

#[test]
fn primary_whose_row_store_is_away_gives_way_to_one_whose_store_is_there() {
    let mut story = Story::new(3);
    let away = |story: &mut Story, replica, is_away| {
        story.says(replica, |status| status.store_away = is_away);
        story.wait(0);
    };
    away(&mut story, R2, true);
    story.is_content();
    away(&mut story, R1, true);
    story.proposes("e6[r1 r2 r3*]w2");
    // With none that is better off, it stays.
    away(&mut story, R3, true);
    story.is_content();
    away(&mut story, R1, false);
    story.is_content();
}
