//! The chart of a benchmark, as SVG.

use plotters::prelude::*;
use speculators::error::{Error, Result};
use std::fmt::Display;

/// Pixels: the width of the chart, and the heights of its title, its panels and a line of names.
const WIDTH: u32 = 1260;
const TITLE: u32 = 24;
const PANELS: u32 = 400;
const LINE: u32 = 20;
/// Names of a line.
const COLUMNS: usize = 3;
const FONT: &str = "sans-serif";

/// What is shown of one way of decoding.
#[derive(Clone, Debug)]
pub struct Way {
    /// Whose; the chains of one speculator are one line.
    pub name: String,
    /// The most drafts of a round.
    pub drafts: usize,
    /// Of the first draft, the second one, and so on, wherever they were looked at.
    pub acceptance: Vec<f64>,
    /// On average.
    pub tokens_per_pass: f64,
    /// Tokens of a second against those without a speculator.
    pub speed_up: f64,
}

/// A point of a way.
type Point = (f64, f64);
/// A part of the chart.
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// All ways with one name, in the order of their drafts.
struct Line<'a> {
    name: &'a str,
    ways: Vec<&'a Way>,
}

impl Line<'_> {
    /// Of the way with the most drafts, which says most of it.
    fn acceptance(&self) -> Vec<Point> {
        let shares = self.ways.last().map_or(&[][..], |way| &way.acceptance);
        (1..).zip(shares).map(|(place, share)| (f64::from(place), 100.0 * share)).collect()
    }

    fn over_drafts(&self, value: impl Fn(&Way) -> f64) -> Vec<Point> {
        self.ways.iter().map(|way| (way.drafts as f64, value(way))).collect()
    }
}

/// Draws acceptance by position, and tokens of a pass and speed-up over the number of drafts.
pub fn draw(title: &str, ways: &[Way]) -> Result<String> {
    let lines = lines(ways);
    let names = lines.len().div_ceil(COLUMNS) as u32 * LINE;
    let size = (WIDTH, 2 * TITLE + PANELS + names + LINE);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(defect)?;
        let inner = root.titled(title, (FONT, TITLE)).map_err(defect)?;
        let (panels, legend) = inner.split_vertically(PANELS);
        let parts = panels.split_evenly((1, 3));
        let position = ("accepted by position, %", "position of the draft");
        panel(&parts[0], position, 100.0, lines.iter().map(Line::acceptance))?;
        let tokens = lines.iter().map(|line| line.over_drafts(|way| way.tokens_per_pass));
        panel(&parts[1], ("tokens per target pass", "drafts per round"), 1.0, tokens)?;
        let speed = lines.iter().map(|line| line.over_drafts(|way| way.speed_up));
        panel(&parts[2], ("speed-up", "drafts per round"), 1.0, speed)?;
        tell_names(&legend, &lines)?;
        root.present().map_err(defect)?;
    }
    Ok(text)
}

fn lines(ways: &[Way]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for way in ways {
        match lines.iter_mut().find(|line| line.name == way.name) {
            Some(line) => line.ways.push(way),
            None => lines.push(Line { name: &way.name, ways: vec![way] }),
        }
    }
    lines.iter_mut().for_each(|line| line.ways.sort_by_key(|way| way.drafts));
    lines
}

/// The color of a line.
fn color(index: usize) -> RGBAColor {
    Palette99::pick(index).to_rgba()
}

/// Draws lines over an axis that begins at 0 and reaches `least` at least.
fn panel(
    area: &Area<'_>,
    (title, axis): (&str, &str),
    least: f64,
    lines: impl Iterator<Item = Vec<Point>>,
) -> Result<()> {
    let lines: Vec<Vec<Point>> = lines
        .map(|points| points.into_iter().filter(|(_, value)| value.is_finite()).collect())
        .collect();
    let all = || lines.iter().flatten();
    let right = all().map(|point| point.0).fold(1.0, f64::max) + 0.5;
    let top = all().map(|point| point.1).fold(least, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(title, (FONT, 16))
        .x_label_area_size(36)
        .y_label_area_size(40)
        .build_cartesian_2d(0.5..right, 0.0..top)
        .map_err(defect)?;
    chart
        .configure_mesh()
        .x_desc(axis)
        .x_labels((right as usize).min(12))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| if least > 1.0 { format!("{y:.0}") } else { format!("{y:.1}") })
        .light_line_style(WHITE)
        .label_style((FONT, 12))
        .draw()
        .map_err(defect)?;
    for (index, points) in lines.iter().enumerate() {
        let line = LineSeries::new(points.iter().copied(), color(index).stroke_width(2));
        chart.draw_series(line).map_err(defect)?;
        let dots = points.iter().map(|&point| Circle::new(point, 3, color(index).filled()));
        chart.draw_series(dots).map_err(defect)?;
    }
    Ok(())
}

fn tell_names(area: &Area<'_>, lines: &[Line<'_>]) -> Result<()> {
    for (index, line) in lines.iter().enumerate() {
        let (column, row) = (index % COLUMNS, index / COLUMNS);
        let x = column as i32 * (WIDTH as i32 / COLUMNS as i32) + 50;
        let y = row as i32 * LINE as i32 + LINE as i32 / 2;
        area.draw(&Circle::new((x, y), 4, color(index).filled())).map_err(defect)?;
        let text = Text::new(line.name.to_owned(), (x + 12, y - 6), (FONT, 13));
        area.draw(&text).map_err(defect)?;
    }
    Ok(())
}

fn defect(error: impl Display) -> Error {
    Error::internal(format!("the chart: {error}"))
}
