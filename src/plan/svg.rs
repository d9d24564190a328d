//! A whole world's plans as a drawing: one row per lane of each rank, steps from left to right as
//! one tile would run them, messages as curves between them.
//!
//! The drawing shows what the plans say, right or wrong; what the checker finds is written under
//! the title. Plain SVG 1.1 without scripts or style sheets, in whole pixels.

use std::fmt::Write;

use super::check::trace::{Lead, Mark, Trace, trace};
use super::check::{Options, check};
use super::{Plan, Region, Step, Verb, flag};

const MARGIN: usize = 24;
const NAMES: usize = 92;
const TOP: usize = 96;
const ROW: usize = 56;
const BETWEEN: usize = 12;
const BOX: usize = 38;
/// Width of a character of a step's label; labels are the only text that must fit somewhere.
const CHARACTER: usize = 7;
/// Ranges of chunks named in a box.
const RANGES: usize = 3;
const FONT: &str = "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\"";
const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";

/// Where things go.
struct Canvas {
    /// Width of a step's box.
    width: usize,
    /// Room for curves between boxes: they cross more ranks in larger worlds.
    gap: usize,
    columns: usize,
    lanes: usize,
    ranks: usize,
}

/// Draws the plans of all ranks of a world, ordered by rank.
#[must_use]
pub fn svg(plans: &[Plan]) -> String {
    let (trace, stopped) = trace_of(plans);
    let remark = match (check(plans, Options::for_world(plans.len())), stopped) {
        (Ok(proof), None) => (remark(plans, &proof), FAINT),
        (Err(flaw), _) => (format!("Flaw: {flaw}"), "#c81e1e"),
        (_, Some(flaw)) => (format!("Flaw: {flaw}"), "#c81e1e"),
    };
    let label = |m: &Mark| label(m).chars().count().max(verb(m).chars().count());
    let canvas = Canvas {
        width: trace.marks.iter().map(label).max().unwrap_or(0) * CHARACTER + 18,
        gap: 40 + 4 * plans.len().min(16),
        columns: trace.marks.iter().map(|m| m.column + 1).max().unwrap_or(1),
        lanes: plans.iter().map(Plan::lanes).max().unwrap_or(1).max(1),
        ranks: plans.len(),
    };
    let mut out = String::new();
    canvas.head(&mut out, plans, remark);
    canvas.rows(&mut out);
    for &(from, to, lead) in &trace.leads {
        canvas.curve(&mut out, &trace.marks[from], &trace.marks[to], lead);
    }
    for mark in &trace.marks {
        canvas.mark(&mut out, mark);
    }
    canvas.legend(&mut out, &trace);
    out.push_str("</svg>\n");
    out
}

/// Plans that do not even fit each other are not run.
fn trace_of(plans: &[Plan]) -> (Trace, Option<super::check::Flaw>) {
    match super::check::shaped(plans) {
        Ok(()) => trace(plans),
        Err(flaw) => (Trace::default(), Some(flaw)),
    }
}

fn remark(plans: &[Plan], proof: &super::check::Proof) -> String {
    let count = |n: u32, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut parts = vec![
        format!("{} a tile", count(proof.messages, "message")),
        format!("longest chain {}", proof.rounds),
        format!("at most {} moved by a rank", count(proof.sent_max, "chunk")),
    ];
    if plans[0].stage_chunks > 0 {
        parts[0] = "by way of memory all can load".into();
    }
    if plans[0].direct {
        parts[0] = "in the peers' own memory".into();
    }
    if plans[0].key.collective.reduces() {
        let order = if proof.ordered { "in tree order" } else { "not in tree order" };
        parts.push(order.into());
    }
    parts.join(", ")
}

impl Canvas {
    fn size(&self) -> (usize, usize) {
        let width = self.x(self.columns) - self.gap + MARGIN;
        (width.max(760), self.y(self.ranks, 0) + 72)
    }

    fn x(&self, column: usize) -> usize {
        MARGIN + NAMES + column * (self.width + self.gap)
    }

    fn y(&self, rank: usize, lane: usize) -> usize {
        TOP + rank * (self.lanes * ROW + BETWEEN) + lane * ROW
    }

    fn head(&self, out: &mut String, plans: &[Plan], (remark, colour): (String, &str)) {
        let (width, height) = self.size();
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" {FONT}>"
        );
        rect(out, (0, 0, width, height), "fill=\"#ffffff\"");
        let title = plans.first().map_or_else(String::new, |plan| {
            let key = &plan.key;
            let root = match key.collective.rooted() {
                true => format!(", root {}", key.root),
                false => String::new(),
            };
            format!("{} by {}, {} ranks{root}", key.collective, key.algorithm.name(), key.world)
        });
        let place = format!("font-size=\"20\" font-weight=\"bold\" fill=\"{INK}\"");
        text(out, (MARGIN, 40), &place, &title);
        let style = format!("font-size=\"13\" fill=\"{colour}\"");
        let room = (width - 2 * MARGIN) / CHARACTER;
        text(out, (MARGIN, 62), &style, &cut(&remark, room));
        for column in 0..self.columns {
            let at = (self.x(column) + self.width / 2, TOP - 12);
            let style = format!("font-size=\"11\" fill=\"{FAINT}\" text-anchor=\"middle\"");
            text(out, at, &style, &column.to_string());
        }
    }

    fn rows(&self, out: &mut String) {
        let (width, _) = self.size();
        for rank in 0..self.ranks {
            let (top, height) = (self.y(rank, 0), self.lanes * ROW);
            let fill = if rank % 2 == 0 { "#f3f5f8" } else { "#f9fafb" };
            let band = (MARGIN - 8, top, width - 2 * MARGIN + 16, height);
            rect(out, band, &format!("rx=\"8\" fill=\"{fill}\""));
            let middle = top + height / 2 + 5;
            let style = format!("font-size=\"14\" font-weight=\"bold\" fill=\"{INK}\"");
            text(out, (MARGIN + 4, middle), &style, &format!("rank {rank}"));
            for lane in 0..self.lanes {
                let y = self.y(rank, lane) + ROW / 2;
                let (from, to) = (self.x(0) - 10, width - MARGIN);
                let _ = writeln!(
                    out,
                    "<line x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\" stroke=\"#d5dae1\"/>"
                );
                if self.lanes > 1 {
                    let style = format!("font-size=\"10\" fill=\"{FAINT}\" text-anchor=\"end\"");
                    text(out, (self.x(0) - 14, y + 4), &style, &lane.to_string());
                }
            }
        }
    }

    /// The middle of a mark's row.
    fn middle(&self, mark: &Mark) -> usize {
        self.y(mark.rank.index(), mark.lane) + ROW / 2
    }

    fn curve(&self, out: &mut String, from: &Mark, to: &Mark, lead: Lead) {
        let (x1, x2) = (self.x(from.column) + self.width, self.x(to.column));
        let (y1, y2) = (self.middle(from), self.middle(to));
        let (colour, style) = match lead {
            Lead::Message | Lead::Wide => (colours(from.step().verb).1, line_style(lead)),
            Lead::Phase => (FAINT, line_style(lead)),
            Lead::Wait => (INK, line_style(lead)),
        };
        let tip = x2 - 7;
        let bend = (self.gap * 3 / 4).min((tip - x1) / 2);
        let _ = writeln!(
            out,
            "<path d=\"M{x1} {y1}C{} {y1} {} {y2} {tip} {y2}\" fill=\"none\" \
             stroke=\"{colour}\" {style}/>",
            x1 + bend,
            tip - bend,
        );
        let (above, below) = (y2 - 4, y2 + 4);
        let _ = writeln!(
            out,
            "<path d=\"M{tip} {above}L{x2} {y2}L{tip} {below}z\" fill=\"{colour}\"/>"
        );
    }

    fn mark(&self, out: &mut String, mark: &Mark) {
        let (x, y) = (self.x(mark.column), self.middle(mark) - BOX / 2);
        let (fill, stroke) = colours(mark.step().verb);
        let _ = writeln!(out, "<g><title>{}</title>", escaped(&hover(mark)));
        let style = format!("rx=\"6\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.3\"");
        rect(out, (x, y, self.width, BOX), &style);
        if mark.step().has(flag::SETTLE) {
            let style = format!("rx=\"2\" fill=\"{stroke}\"");
            rect(out, (x, y, 5, BOX), &style);
        }
        let middle = x + self.width / 2;
        let centred = "text-anchor=\"middle\"";
        let style = format!("font-size=\"10\" fill=\"{stroke}\" {centred}");
        text(out, (middle, y + 15), &style, &verb(mark));
        let style = format!("font-size=\"12\" fill=\"{INK}\" {centred}");
        text(out, (middle, y + 30), &style, &label(mark));
        if mark.step().has(flag::FINISH) {
            tick(out, (x + self.width - 3, y + 3), stroke);
        }
        out.push_str("</g>\n");
    }

    fn legend(&self, out: &mut String, trace: &Trace) {
        let y = self.y(self.ranks, 0) + 22;
        let mut x = MARGIN;
        let style = format!("font-size=\"12\" fill=\"{INK}\"");
        for &verb in Verb::ALL {
            if !trace.marks.iter().any(|m| m.step().verb == verb) {
                continue;
            }
            let (fill, stroke) = colours(verb);
            let box_style = format!("rx=\"3\" fill=\"{fill}\" stroke=\"{stroke}\"");
            rect(out, (x, y - 11, 18, 14), &box_style);
            text(out, (x + 24, y), &style, &verb.name().replace('_', " "));
            x += 24 + verb.name().len() * CHARACTER + 22;
        }
        let (mut x, y) = (MARGIN, y + 30);
        let line = |out: &mut String, x: usize, style: &str| {
            let (end, y) = (x + 26, y - 4);
            let _ = writeln!(
                out,
                "<line x1=\"{x}\" y1=\"{y}\" x2=\"{end}\" y2=\"{y}\" stroke=\"{INK}\" {style}/>"
            );
        };
        let lines = [
            (Lead::Message, "message"),
            (Lead::Wide, "wide message"),
            (Lead::Phase, "phase"),
            (Lead::Wait, "waits for"),
        ];
        for (lead, name) in lines {
            if trace.leads.iter().any(|l| l.2 == lead) {
                line(out, x, line_style(lead));
                text(out, (x + 32, y), &style, name);
                x += 32 + name.len() * CHARACTER + 22;
            }
        }
        if trace.marks.iter().any(|m| m.step().has(flag::FINISH)) {
            tick(out, (x + 8, y - 4), INK);
            text(out, (x + 22, y), &style, "finished result");
            x += 22 + 15 * CHARACTER + 8;
        }
        if trace.marks.iter().any(|m| m.step().has(flag::SETTLE)) {
            rect(out, (x, y - 13, 5, 18), &format!("rx=\"2\" fill=\"{INK}\""));
            text(out, (x + 12, y), &style, "once posts of the target have left");
        }
    }
}

/// Fill and stroke of a verb.
fn colours(verb: Verb) -> (&'static str, &'static str) {
    match verb {
        Verb::Send => ("#dbeafe", "#1d4ed8"),
        Verb::Recv => ("#d5f5f0", "#0f766e"),
        Verb::Copy => ("#e9ecf0", "#52606d"),
        Verb::Reduce => ("#fde2e7", "#be123c"),
        Verb::RecvReduce => ("#ffe8d1", "#c2560c"),
        Verb::RecvReduceSend => ("#eee2fb", "#7a2fb5"),
        Verb::RecvCopySend => ("#dcf3dc", "#2a7d2e"),
        Verb::Fold => ("#fddede", "#b42318"),
        Verb::Post => ("#fdf3c4", "#8d6708"),
        Verb::Await => ("#f1efe9", "#6d6353"),
    }
}

fn line_style(lead: Lead) -> &'static str {
    match lead {
        Lead::Message => "stroke-width=\"1.6\" stroke-opacity=\"0.8\"",
        Lead::Wide => "stroke-width=\"3.2\" stroke-opacity=\"0.75\"",
        Lead::Phase => "stroke-width=\"1\" stroke-opacity=\"0.45\" stroke-dasharray=\"2 2\"",
        Lead::Wait => "stroke-width=\"1.4\" stroke-opacity=\"0.9\" stroke-dasharray=\"5 3\"",
    }
}

/// The verb as the box shows it.
fn verb(mark: &Mark) -> String {
    let name = mark.step().verb.name().replace('_', " ");
    match mark.steps.len() {
        1 => name,
        times => format!("{name} ×{times}"),
    }
}

/// A region and the chunks of it that the steps name: `in 0–2, 5`.
fn chunks(region: Region, ranges: impl Iterator<Item = (u32, u32)>) -> String {
    let name = match region {
        Region::Input => "in",
        Region::Output => "out",
        Region::Work => "work",
        Region::PeerInput => "peer in",
        Region::PeerOutput => "peer out",
        Region::Stage => "stage",
        Region::PeerStage => "peer stage",
        Region::None => return String::new(),
    };
    let mut ranges: Vec<(u32, u32)> = ranges.collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, range| {
        let meets = next.0 <= range.1;
        if meets {
            range.1 = range.1.max(next.1);
        }
        meets
    });
    let shown = ranges.iter().take(RANGES).map(|&(first, end)| match end - first {
        1 => first.to_string(),
        _ => format!("{first}–{}", end - 1),
    });
    let more = if ranges.len() > RANGES { ", …" } else { "" };
    format!("{name} {}{more}", shown.collect::<Vec<_>>().join(", "))
}

/// What the steps move, in few words.
fn label(mark: &Mark) -> String {
    let step = mark.step();
    let range = |first, s: &Step| (first, first + s.chunks);
    let source = chunks(step.source, mark.steps.iter().map(|s| range(s.source_chunk, s)));
    let target = chunks(step.target, mark.steps.iter().map(|s| range(s.target_chunk, s)));
    let combined = match step.has(flag::INCOMING_FIRST) {
        true => format!("msg + {source}"),
        false => format!("{source} + msg"),
    };
    let every = |text: String| text.replace("peer ", "all ");
    match step.verb {
        Verb::Send => source,
        Verb::Recv | Verb::RecvCopySend => target,
        Verb::Copy => format!("{source} → {target}"),
        Verb::Reduce => format!("{source} + {target}"),
        Verb::RecvReduceSend if step.target == Region::None => combined,
        Verb::RecvReduce | Verb::RecvReduceSend => format!("{combined} → {target}"),
        Verb::Fold if step.source == Region::PeerInput && step.has(flag::SPREAD) => {
            format!("{} → all {target}", every(source))
        }
        Verb::Fold if step.source == Region::PeerStage => {
            let stage = if step.has(flag::SPREAD) { ", stage" } else { "" };
            format!("in + {} → {target}{stage}", every(source))
        }
        Verb::Fold if step.source == Region::PeerInput => format!("{} → {target}", every(source)),
        Verb::Fold => format!("Σ {source} → {target}"),
        Verb::Post | Verb::Await => format!("phase {}", step.source_chunk),
    }
}

/// What a viewer shows under the pointer.
fn hover(mark: &Mark) -> String {
    let lines: Vec<String> = mark.steps.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn rect(out: &mut String, (x, y, width, height): (usize, usize, usize, usize), style: &str) {
    let _ =
        writeln!(out, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {style}/>");
}

/// A check mark in a disc.
fn tick(out: &mut String, (x, y): (usize, usize), fill: &str) {
    let from = x - 3;
    let _ = writeln!(
        out,
        "<circle cx=\"{x}\" cy=\"{y}\" r=\"7\" fill=\"{fill}\"/>\n\
         <path d=\"M{from} {y}l2 3l4 -5\" fill=\"none\" stroke=\"#ffffff\" stroke-width=\"1.6\"/>"
    );
}

fn text(out: &mut String, (x, y): (usize, usize), style: &str, text: &str) {
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" {style}>{}</text>", escaped(text));
}

/// The first `room` characters.
fn cut(text: &str, room: usize) -> String {
    match text.char_indices().nth(room) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text.into(),
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples;

    /// Every opened tag is closed, in order; text holds no stray markup.
    fn well_formed(svg: &str) -> bool {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let Some((tag, _)) = tag.split_once('>') else {
                return false;
            };
            let name = tag.split(|c: char| !c.is_alphanumeric() && c != '/').next().unwrap_or("");
            if let Some(closed) = name.strip_prefix('/') {
                if open.pop() != Some(closed) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        open.is_empty()
    }

    #[test]
    fn every_step_and_message_is_drawn() {
        for (name, plans, _) in samples::all() {
            let drawing = svg(&plans);
            if let Some(folder) = std::env::var_os("UNISONO_SVG_DIR") {
                let file = format!("{}.svg", name.replace(' ', "_"));
                std::fs::write(std::path::Path::new(&folder).join(file), &drawing).unwrap();
            }
            assert!(well_formed(&drawing), "{name}");
            assert!(!drawing.contains("Flaw"), "{name}");
            let (trace, flaw) = trace(&plans);
            assert_eq!(flaw, None);
            assert_eq!(drawing.matches("<g>").count(), trace.marks.len());
            let steps: usize = plans.iter().map(|p| p.steps.len()).sum();
            assert_eq!(trace.marks.iter().map(|m| m.steps.len()).sum::<usize>(), steps, "{name}");
            let proof = check(&plans, Options::default()).unwrap();
            let messages = |l: &&(_, _, Lead)| matches!(l.2, Lead::Message | Lead::Wide);
            let drawn = trace.leads.iter().filter(messages).count();
            assert_eq!(drawn, proof.messages as usize, "{name}");
        }
    }

    #[test]
    fn a_flaw_is_drawn_as_far_as_it_goes() {
        let mut plans = samples::all().swap_remove(1).1;
        plans[1].steps[7].from = 3;
        let drawing = svg(&plans);
        assert!(well_formed(&drawing));
        assert!(drawing.contains("Flaw: rank 0 lane 0 step 1"));
        assert!(drawing.contains("-&gt; output[3]"));
        plans[1].steps[7].from = 9;
        assert!(well_formed(&svg(&plans)));
        assert!(well_formed(&svg(&[])));
    }
}
