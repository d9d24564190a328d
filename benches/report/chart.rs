//! Charts: time over size, both logarithmic, as SVG.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::runner::Seen;
use super::table::{FLOOR, OURS, size};

const WIDTH: u32 = 760;
const HEIGHT: u32 = 460;

/// Told apart by those who see few colours, too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// What the lower axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    Bytes,
    Elements,
}

/// A logarithmic axis with marks at given values.
struct Log {
    marks: Vec<f64>,
    range: Range<f64>,
}

impl Log {
    /// Marks where it was measured, and some room around.
    fn sizes(sizes: Vec<f64>) -> Self {
        let [first, .., last] = sizes[..] else { unreachable!("two sizes at least") };
        Self { marks: sizes, range: first / 1.5..last * 1.5 }
    }

    /// Round marks: 1, 2 and 5 times powers of ten, over a wide range the powers alone.
    fn times(least: f64, most: f64) -> Self {
        let range = least / 1.5..most * 1.5;
        let steps: &[f64] = if most / least > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let marks = (-6..12).flat_map(|power| steps.iter().map(move |s| s * 10f64.powi(power)));
        Self { marks: marks.filter(|mark| range.contains(mark)).collect(), range }
    }
}

impl Ranged for Log {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let Range { start, end } = self.range;
        let part = (value / start).ln() / (end / start).ln();
        from + pixels(part * f64::from(to - from))
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Log {}

#[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
fn pixels(value: f64) -> i32 {
    value.round() as i32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// A mark as it is written: no digits that say nothing.
fn round(mark: &f64) -> String {
    let text = format!("{mark:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

/// The chart; `None` when fewer than two sizes have figures.
///
/// # Errors
/// What the drawing library says.
pub(super) fn draw(title: &str, axis: Axis, seen: &[Seen]) -> Result<Option<String>, String> {
    let lines: Vec<(&str, Vec<(f64, f64)>)> = seen
        .iter()
        .map(|seen| {
            let medians = seen.medians();
            let known = medians.into_iter().filter(|&(at, time)| at > 0 && time > 0.0);
            (seen.name.as_str(), known.map(|(at, time)| (float(at), time)).collect::<Vec<_>>())
        })
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let points = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let mut sizes: Vec<f64> = points().map(|(at, _)| at).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    if sizes.len() < 2 {
        return Ok(None);
    }
    let least = points().map(|(_, time)| time).fold(f64::INFINITY, f64::min);
    let most = points().map(|(_, time)| time).fold(0.0, f64::max);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        picture(&area, title, axis, (Log::sizes(sizes), Log::times(least, most)), &lines)
            .and_then(|()| area.present().map_err(|error| error.to_string()))?;
    }
    Ok(Some(text))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn picture(
    area: &Area<'_>,
    title: &str,
    axis: Axis,
    (sizes, times): (Log, Log),
    lines: &[(&str, Vec<(f64, f64)>)],
) -> Result<(), String> {
    let failed = |error: DrawingAreaErrorKind<_>| error.to_string();
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(sizes, times)
        .map_err(failed)?;
    let bytes = |at: &f64| if axis == Axis::Bytes { size(whole(*at)) } else { at.to_string() };
    chart
        .configure_mesh()
        .x_desc(if axis == Axis::Bytes { "size" } else { "elements" })
        .y_desc("time of a call (us)")
        .x_label_formatter(&bytes)
        .y_label_formatter(&round)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.15))
        .draw()
        .map_err(failed)?;
    let mut colours = COLOURS.into_iter().cycle();
    for (name, points) in lines {
        let style = match *name {
            OURS => BLACK.stroke_width(3),
            FLOOR => BLACK.mix(0.4).stroke_width(2),
            _ => colours.next().unwrap_or(BLACK).stroke_width(2),
        };
        let drawn = if *name == FLOOR {
            chart.draw_series(DashedLineSeries::new(points.iter().copied(), 6, 4, style))
        } else {
            chart.draw_series(LineSeries::new(points.iter().copied(), style).point_size(2))
        };
        let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style);
        drawn.map_err(failed)?.label(*name).legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::seen;
    use super::*;

    #[test]
    fn a_chart_names_its_lines_and_sizes() {
        let lines = [
            seen(OURS, &[(8, 0.4), (64, 0.5), (2 << 20, 300.0)]),
            seen(FLOOR, &[(8, 0.2), (64, 0.2), (2 << 20, 250.0)]),
            seen("One", &[(8, 1.4), (64, 1.5)]),
        ];
        let text = draw("all_reduce, 2 ranks", Axis::Bytes, &lines).expect("drawn").expect("one");
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        for word in ["all_reduce, 2 ranks", OURS, FLOOR, "One", "8 B", "64 B", "2 MiB"] {
            assert!(text.contains(word), "{word}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn marks_are_round() {
        let marks = |least, most| -> Vec<String> {
            Log::times(least, most).marks.iter().map(round).collect()
        };
        assert_eq!(marks(0.3, 4.0), ["0.2", "0.5", "1", "2", "5"]);
        assert_eq!(marks(0.3, 40_000.0), ["1", "10", "100", "1000", "10000"]);
    }

    #[test]
    fn one_size_makes_no_chart() {
        let lines = [seen(OURS, &[(8, 0.4)])];
        assert_eq!(draw("", Axis::Bytes, &lines).expect("no fault"), None);
        assert_eq!(draw("", Axis::Elements, &[]).expect("no fault"), None);
    }
}
