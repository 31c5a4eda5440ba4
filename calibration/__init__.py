"""Cost models: what a step costs on which hardware, measured, fitted or from data sheets."""
