"""Does the statistics keep its promises? Simulators whose truth is known, and studies that count."""
