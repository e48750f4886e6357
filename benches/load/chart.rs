//! A picture of the tables. It brings its own background, and a darker one for those who like it dark.

use super::tables::{Bar, Table};

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.card{fill:#fff}.title{font-weight:600}.small{font-size:10px}\
.ours{fill:#1f6feb}.peer{fill:#afb8c1}.limit{fill:#d29922}.spread{stroke:#1f2328}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.card{fill:#0d1117}.ours{fill:#388bfd}.peer{fill:#6e7681}.limit{fill:#bb8009}\
.spread{stroke:#e6edf3}}";

const WIDTH: f64 = 860.0;
/// Where bars begin, and how long they can be.
const LEFT: f64 = 300.0;
const LONGEST: f64 = 390.0;
const LINE: f64 = 20.0;

pub fn draw(tables: &[Table], machine: &str) -> String {
    let mut body = String::new();
    let mut y = 26.0;
    let mut legend = 16.0;
    for (class, about) in [("ours", "this library"), ("peer", "others"), ("limit", "limits: fio and bare loops")] {
        body += &format!(
            "<rect class=\"{class}\" x=\"{legend}\" y=\"{}\" width=\"12\" height=\"12\"/>\
             <text x=\"{}\" y=\"{y}\">{about}</text>\n",
            y - 10.0,
            legend + 18.0
        );
        legend += 40.0 + about.len() as f64 * 7.0;
    }
    body += &text(WIDTH - 16.0, y, "small\" text-anchor=\"end", "medians; lines: quartiles; shorter is better");
    for table in tables {
        y += 2.0 * LINE;
        body += &text(16.0, y, "title", &format!("{}: {}", table.name, table.about));
        let bars = table.bars();
        let longest = longest(&bars);
        for bar in bars {
            y += LINE;
            body += &draw_bar(&bar, y, longest);
        }
    }
    y += 1.5 * LINE;
    body += &text(16.0, y, "small", machine);
    let height = y + 14.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>Loading: time by \
         contender</title>\n<style>{STYLE}</style>\n<rect class=\"card\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n{body}</svg>\n"
    )
}

/// Bars that are far longer than most would leave nothing of those: they are cut, and say how long they are.
fn longest(bars: &[Bar]) -> f64 {
    let mut seconds: Vec<f64> = bars.iter().map(|bar| bar.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let (middle, most) = (seconds.get(seconds.len() / 2), seconds.last());
    most.copied().unwrap_or(1.0).min(4.0 * middle.copied().unwrap_or(1.0))
}

fn draw_bar(bar: &Bar, y: f64, longest: f64) -> String {
    let class = match bar.who {
        "ours" | "limit" => bar.who,
        _ => "peer",
    };
    let at = |seconds: f64| LEFT + seconds.min(longest) / longest * LONGEST;
    let (low, high) = (at(bar.quartiles.0), at(bar.quartiles.1));
    let is_cut = bar.seconds > longest;
    let value = format!("{:.2} s, {:.2} GB/s{}", bar.seconds, bar.speed, if is_cut { " (cut)" } else { "" });
    let (width, top, middle) = (at(bar.seconds) - LEFT, y - 11.0, y - 4.0);
    text(LEFT - 8.0, y, "name\" text-anchor=\"end", bar.title.trim_start_matches("limit: "))
        + &format!("<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"14\"/>")
        + &format!("<path class=\"spread\" d=\"M{low:.1} {middle}H{high:.1}\"/>")
        + &text(high.max(LEFT + width) + 6.0, y, "value", &value)
}

fn text(x: f64, y: f64, class: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y}\" class=\"{class}\">{text}</text>\n")
}
