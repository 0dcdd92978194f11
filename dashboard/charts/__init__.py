"""DataFrame → Plotly figure, one kind of chart a file. No streamlit."""
