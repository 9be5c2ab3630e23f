"""This application, llama.cpp's server and PEFT side by side on the same CPU."""
