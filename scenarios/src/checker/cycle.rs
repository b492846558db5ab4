//! Strict serializability of one shard: no cycle in the graph of all that must have come before what.
//!
//! Operations are nodes. Edges: the writer of a version to the writer of the next (ww), to its readers (wr), a reader to the writer of
//! the next version (rw), and real time, as a chain of barriers so that it takes a number of edges that grows with the operations, not
//! with their square. The order of versions is that of the log, which comes back with rows and acknowledgements. The idea is Elle's
//! (Kingsbury and Alvaro, 2020), section 4; there versions are inferred, here they are told.

use super::{
    Check, Findings, Violation, explain,
    model::{Class, INFINITY, Model},
    versions::{Sight, Slots, Versions},
};
use std::collections::{BTreeMap, VecDeque};

/// Why one operation comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It wrote the version before.
    Wrote(u32),
    /// Its version was seen.
    WasRead(u32),
    /// It saw the version before.
    Saw(u32),
    /// It saw the key absent or present before.
    SawExistence(u32),
    /// It had returned when the other was called.
    Time,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    from: u32,
    to: u32,
    reason: Reason,
}

/// Checks one shard.
pub(super) fn check(model: &Model<'_>) -> Findings {
    let mut found = Findings::default();
    let versions = Versions::new(model);
    let mut edges: Vec<Edge> = Vec::with_capacity(model.ops.len() * 5 + model.seen.len());
    let mut add = |from: usize, to: usize, reason: Reason| {
        if from != to {
            edges.push(Edge { from: from as u32, to: to as u32, reason });
        }
    };
    for key in 0..versions.key_count() {
        for pair in versions.of(key).windows(2) {
            add(pair[0].op, pair[1].op, Reason::Wrote(key as u32));
        }
    }
    let mut absent_slots: BTreeMap<usize, Slots> = BTreeMap::new();
    let mut present_slots: BTreeMap<usize, Slots> = BTreeMap::new();
    let mut exact_count = 0;
    let mut narrowed_count = 0;
    for (op, each) in model.ops.iter().enumerate() {
        if !each.is_strict() {
            continue;
        }
        for seen in &model.seen[each.seen.clone()] {
            let Some(writer) = seen.writer else { continue };
            exact_count += 1;
            add(writer, op, Reason::WasRead(seen.key as u32));
            let next = model.ops[writer].index().and_then(|index| versions.place(seen.key, index, writer)).map(|place| place + 1);
            if let Some(next) = next.and_then(|next| versions.of(seen.key).get(next)) {
                add(op, next.op, Reason::Saw(seen.key as u32));
            }
        }
        // That a key was there, or not, without a word on which version it was.
        let absences =
            model.seen[each.seen.clone()].iter().filter(|seen| seen.value == crate::history::ABSENT).map(|seen| (seen.key, false));
        let needs = model.needs[each.needs.clone()].iter().map(|need| (need.key, need.present));
        for (key, present) in absences.chain(needs) {
            narrowed_count += 1;
            if versions.could_be(key, present, each.returned, op) {
                continue;
            }
            if let (Class::Command, Some(index)) = (each.class, each.index()) {
                // A command with a place in the log needs what stands before it.
                let before = versions.of(key).partition_point(|version| version.index < index).checked_sub(1);
                if before.is_some_and(|before| versions.of(key)[before].present) != present {
                    found.violation(|| existence(model, op, key, present, before.map(|before| versions.of(key)[before].op)));
                }
                continue;
            }
            let slots = if present { &mut present_slots } else { &mut absent_slots };
            let slots = slots.entry(key).or_insert_with(|| Slots::new(model, versions.of(key), present));
            let (first, last) = match slots.sight(each.called, each.returned) {
                Sight::Between(first, last) => (first, last),
                // The edges make the cycle that tells why.
                Sight::TooOld(version) => (version, version),
                Sight::Nothing => {
                    found.violation(|| existence(model, op, key, present, None));
                    continue;
                }
            };
            if let Some(first) = first {
                add(versions.of(key)[first].op, op, Reason::WasRead(key as u32));
            }
            if let Some(next) = versions.of(key).get(last.map_or(0, |last| last + 1)) {
                add(op, next.op, Reason::SawExistence(key as u32));
            }
        }
    }
    let data_edge_count = edges.len();
    let node_count = real_time(model, &mut edges);
    search(model, node_count, &edges, &mut found);
    found.count("operations", model.ops.iter().filter(|op| op.is_strict()).count());
    found.count("values seen", exact_count);
    found.count("absences and conditions", narrowed_count);
    found.count("order edges", data_edge_count);
    found.count("writes without a version", versions.loose_count);
    found
}

fn existence(model: &Model<'_>, op: usize, key: usize, present: bool, before: Option<usize>) -> Violation {
    let key = model.keys[key];
    let summary = if present {
        format!("key {key} was found there, but it was not")
    } else {
        format!("key {key} was found missing, but it was there")
    };
    let mut ops: Vec<(usize, &str)> = before.into_iter().map(|before| (before, "  <- the version before")).collect();
    ops.push((op, ""));
    model.violation(Check::Serializability, summary, &ops)
}

/// Adds the barriers: one after all that has returned before a call. Gives the number of nodes.
fn real_time(model: &Model<'_>, edges: &mut Vec<Edge>) -> usize {
    let mut events: Vec<(u64, bool, u32)> = Vec::with_capacity(model.ops.len() * 2);
    for (op, each) in model.ops.iter().enumerate().filter(|(_, op)| op.is_strict()) {
        // At equal times calls come first: they are concurrent with what returns then.
        events.push((each.called, false, op as u32));
        if each.returned != INFINITY {
            events.push((each.returned, true, op as u32));
        }
    }
    events.sort_unstable();
    let mut next_node = model.ops.len();
    let mut barrier: Option<u32> = None;
    let mut returned: Vec<u32> = Vec::new();
    for (_, is_return, op) in events {
        if is_return {
            returned.push(op);
            continue;
        }
        if !returned.is_empty() {
            let new = next_node as u32;
            next_node += 1;
            edges.extend(barrier.into_iter().chain(returned.drain(..)).map(|from| Edge { from, to: new, reason: Reason::Time }));
            barrier = Some(new);
        }
        edges.extend(barrier.map(|from| Edge { from, to: op, reason: Reason::Time }));
    }
    next_node
}

/// Edges by the node they leave.
struct Graph<'e> {
    edges: &'e [Edge],
    starts: Vec<u32>,
    order: Vec<u32>,
}

impl<'e> Graph<'e> {
    fn new(node_count: usize, edges: &'e [Edge]) -> Self {
        let mut starts = vec![0_u32; node_count + 1];
        for edge in edges {
            starts[edge.from as usize + 1] += 1;
        }
        for node in 0..node_count {
            starts[node + 1] += starts[node];
        }
        let mut fill = starts.clone();
        let mut order = vec![0_u32; edges.len()];
        for (place, edge) in edges.iter().enumerate() {
            let at = &mut fill[edge.from as usize];
            order[*at as usize] = place as u32;
            *at += 1;
        }
        Self { edges, starts, order }
    }

    fn out(&self, node: u32) -> impl Iterator<Item = (u32, &'e Edge)> {
        let range = self.starts[node as usize] as usize..self.starts[node as usize + 1] as usize;
        self.order[range].iter().map(|place| (*place, &self.edges[*place as usize]))
    }
}

/// Looks for cycles: what a topological sort leaves over holds one.
fn search(model: &Model<'_>, node_count: usize, edges: &[Edge], found: &mut Findings) {
    let graph = Graph::new(node_count, edges);
    let mut incoming = vec![0_u32; node_count];
    for edge in edges {
        incoming[edge.to as usize] += 1;
    }
    let mut ready: Vec<u32> = (0..node_count as u32).filter(|node| incoming[*node as usize] == 0).collect();
    let mut done_count = 0;
    while let Some(node) = ready.pop() {
        done_count += 1;
        for (_, edge) in graph.out(node) {
            let left = &mut incoming[edge.to as usize];
            *left -= 1;
            if *left == 0 {
                ready.push(edge.to);
            }
        }
    }
    if done_count == node_count {
        return;
    }
    for component in components(&graph, &incoming) {
        found.violation(|| explain_cycle(model, &shortest_cycle(model, &graph, &component)));
    }
}

/// Strongly connected components of more than one node (Tarjan 1972, without recursion) among the nodes that still have incoming edges.
fn components(graph: &Graph<'_>, left: &[u32]) -> Vec<Vec<u32>> {
    const UNSEEN: u32 = u32::MAX;
    let mut number = vec![UNSEEN; left.len()];
    let mut low = vec![UNSEEN; left.len()];
    let mut on_stack = vec![false; left.len()];
    let mut stack = Vec::new();
    let mut next_number = 0;
    let mut components = Vec::new();
    for root in (0..left.len() as u32).filter(|node| left[*node as usize] > 0) {
        if number[root as usize] != UNSEEN {
            continue;
        }
        // Node and how many of its edges were followed.
        let mut path = vec![(root, 0_usize)];
        while let Some((node, followed)) = path.last_mut() {
            let at = *node as usize;
            if *followed == 0 && number[at] == UNSEEN {
                number[at] = next_number;
                low[at] = next_number;
                next_number += 1;
                stack.push(*node);
                on_stack[at] = true;
            }
            let next = graph.out(*node).nth(*followed).map(|(_, edge)| edge.to);
            *followed += 1;
            match next {
                Some(to) if left[to as usize] == 0 => {}
                Some(to) if number[to as usize] == UNSEEN => path.push((to, 0)),
                Some(to) => {
                    if on_stack[to as usize] {
                        low[at] = low[at].min(number[to as usize]);
                    }
                }
                None => {
                    let node = *node;
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        low[*parent as usize] = low[*parent as usize].min(low[at]);
                    }
                    if low[at] == number[at] {
                        let mut component = Vec::new();
                        while let Some(member) = stack.pop() {
                            on_stack[member as usize] = false;
                            component.push(member);
                            if member == node {
                                break;
                            }
                        }
                        if component.len() > 1 {
                            component.sort_unstable();
                            components.push(component);
                        }
                    }
                }
            }
        }
    }
    components
}

/// A cycle of few operations: from some of the component's operations, the shortest way back, barriers counting nothing.
fn shortest_cycle<'e>(model: &Model<'_>, graph: &Graph<'e>, component: &[u32]) -> Vec<&'e Edge> {
    const STARTS_MAX: usize = 200;
    let is_op = |node: u32| (node as usize) < model.ops.len();
    let mut best: Option<(u32, Vec<&Edge>)> = None;
    for start in component.iter().copied().filter(|node| is_op(*node)).take(STARTS_MAX) {
        let mut reached: BTreeMap<u32, (u32, &Edge)> = BTreeMap::new();
        let mut queue: VecDeque<(u32, u32)> = VecDeque::from([(start, 0)]);
        while let Some((node, length)) = queue.pop_front() {
            if reached.get(&start).is_some_and(|(known, _)| *known <= length) || best.as_ref().is_some_and(|(known, _)| *known <= length) {
                break;
            }
            if node != start && reached.get(&node).is_some_and(|(known, _)| *known < length) {
                continue;
            }
            for (_, edge) in graph.out(node) {
                if component.binary_search(&edge.to).is_err() {
                    continue;
                }
                let length = length + u32::from(is_op(edge.to));
                if reached.get(&edge.to).is_none_or(|(known, _)| length < *known) {
                    reached.insert(edge.to, (length, edge));
                    if is_op(edge.to) { queue.push_back((edge.to, length)) } else { queue.push_front((edge.to, length)) }
                }
            }
        }
        let Some((length, last)) = reached.get(&start).copied() else { continue };
        if best.as_ref().is_none_or(|(known, _)| length < *known) {
            let mut cycle = vec![last];
            while cycle[cycle.len() - 1].from != start {
                let Some((_, edge)) = reached.get(&cycle[cycle.len() - 1].from) else { break };
                cycle.push(edge);
            }
            cycle.reverse();
            best = Some((length, cycle));
        }
    }
    best.map(|(_, cycle)| cycle).unwrap_or_default()
}

fn explain_cycle(model: &Model<'_>, cycle: &[&Edge]) -> Violation {
    let mut steps = Vec::new();
    let mut operations = Vec::new();
    let key = |key: u32| model.keys[key as usize];
    for edge in cycle {
        let Some(op) = model.ops.get(edge.from as usize) else { continue };
        let why = match edge.reason {
            Reason::Wrote(at) => format!("key {}: its version comes before the next one's", key(at)),
            Reason::WasRead(at) => format!("key {}: the next saw what it left", key(at)),
            Reason::Saw(at) => format!("key {}: it saw the version that the next wrote over", key(at)),
            Reason::SawExistence(at) => format!("key {}: it saw whether it was there before the next changed that", key(at)),
            Reason::Time => "it had returned when the next was called".to_owned(),
        };
        steps.push(explain::op(op));
        steps.push(format!("   -> {why}"));
        operations.push(op.call.operation);
    }
    let summary =
        format!("no order explains these {} operations: each must come before the next, the last before the first", operations.len());
    Violation { check: Check::Serializability, shard: model.shard, summary, steps, operations }
}
