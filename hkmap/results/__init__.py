"""What evaluations leave behind, and what is made of it: folders of results, comparisons, a page that shows them."""
