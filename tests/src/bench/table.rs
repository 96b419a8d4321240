// SPDX-License-Identifier: Apache-2.0
//! Samples to a Markdown table of medians.

use super::{Case, Sample};

/// One row per case and proxy, in the order of the samples; the last column tells how much CPU
/// `egress` (the first proxy) needs of what the row's proxy needs.
pub fn table(samples: &[Sample]) -> String {
    let mut proxies: Vec<&str> = Vec::new();
    for sample in samples {
        if !proxies.contains(&sample.proxy.as_str()) {
            proxies.push(&sample.proxy);
        }
    }
    let mut text = String::from(
        "| case | proxy | requests/s | proxy CPU, us/request | client CPU, us/request | \
         egress ÷ proxy |\n|---|---|--:|--:|--:|--:|\n",
    );
    for case in Case::ALL {
        let of = |proxy: &str, value: fn(&Sample) -> f64| {
            let chosen = samples
                .iter()
                .filter(|s| s.case == case && s.proxy == proxy);
            median(chosen.map(value).collect())
        };
        let own = proxies
            .first()
            .map_or(f64::NAN, |first| of(first, |s| s.proxy_cpu));
        for proxy in &proxies {
            let cpu = of(proxy, |s| s.proxy_cpu);
            text.push_str(&format!(
                "| {} | {proxy} | {:.0} | {cpu:.1} | {:.1} | {:.2} |\n",
                case.name(),
                of(proxy, |s| s.rate),
                of(proxy, |s| s.client_cpu),
                own / cpu
            ));
        }
    }
    text
}

/// Of an even number, the lower of the two in the middle; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => values[(count - 1) / 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_compared_with_the_first_proxy() {
        let sample = |proxy: &str, proxy_cpu| Sample {
            proxy: proxy.to_owned(),
            case: Case::KeepAlive,
            rate: 10.0,
            proxy_cpu,
            client_cpu: 1.0,
        };
        let samples = [
            sample("egress", 30.0),
            sample("peer", 40.0),
            sample("egress", 900.0),
            sample("peer", 40.0),
            sample("egress", 20.0),
        ];
        let table = table(&samples);
        assert!(
            table.contains("| egress | 10 | 30.0 | 1.0 | 1.00 |"),
            "{table}"
        );
        assert!(
            table.contains("| peer | 10 | 40.0 | 1.0 | 0.75 |"),
            "{table}"
        );
    }
}
